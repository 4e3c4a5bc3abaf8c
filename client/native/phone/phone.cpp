#include "phone.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <optional>
#include <set>
#include <utility>

#include "allow.h"
#include "trouble.h"
#include "trust.h"

namespace fedhead {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kLargestBackbone = 256ULL << 20;
constexpr std::size_t kLongestProblem = 200;
constexpr double kLongestUnmet = 60;  // seconds, while tasks of other runs may come
constexpr std::chrono::seconds kBetween{10};  // questions to the owner while something takes long

double now() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

void check_description(const pb::Description& description) {
  const std::set<std::string> classes(description.classes().begin(), description.classes().end());
  const char* wrong = nullptr;
  if (!is_hex(description.id(), 64)) wrong = "id";
  if (!is_hex(description.fingerprint(), 64)) wrong = "fingerprint";
  if (classes.empty() || static_cast<int>(classes.size()) != description.classes_size()) {
    wrong = "list of classes";
  }
  if (!(description.test_fraction() >= 0 && description.test_fraction() < 1)) {
    wrong = "test fraction";
  }
  if (description.client() >> 63 != 0) wrong = "client";
  if (wrong != nullptr) {
    throw Trouble("description", std::string("it has an impossible ") + wrong);
  }
}

const pb::Backbone& chosen(const pb::Description& description, const Runtime*& runtime) {
  static const auto all = runtimes();
  for (const auto& one : all) {
    for (const auto& backbone : description.backbones()) {
      if (backbone.format() == one.format) {
        runtime = &one;
        return backbone;
      }
    }
  }
  throw Trouble("description: no backbone in a format that this phone can run", "");
}

}  // namespace

Phone::Phone(Settings settings, std::uint32_t wait_seconds, const std::atomic<bool>* stop)
    : settings_(std::move(settings)),
      wait_seconds_(wait_seconds),
      stop_(stop),
      lock_((make_folder(settings_.state), std::make_unique<FolderLock>(settings_.state))),
      channel_(settings_.gateway, settings_.authority, settings_.token, stop),
      gateway_(channel_),
      kept_(settings_.state),
      blobs_(settings_.state / "blobs", gateway_) {}

double Phone::turn() {
  is_well_ = true;
  try {
    const auto pause = take_turn();
    if (is_well_) said_.clear();
    return pause;
  } catch (const Stopped&) {
    throw;
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}

double Phone::fail(const std::string& words) {
  const auto line = one_line(words);
  if (line != said_) {
    std::clog << "fedhead-phone: " << line << "; trying again, each time later" << std::endl;
  }
  said_ = line;
  is_well_ = false;
  return pace_.again();
}

double Phone::take_turn() {
  if (const auto work = kept_.work()) return go_on(*work);
  const auto asked = request();
  const auto reply = gateway_.check_in(asked);
  switch (reply.what_case()) {
    case pb::CheckInReply::kLater:
      if (!asked.problem().empty()) is_well_ = false;
      return pace_.later(reply.later());
    case pb::CheckInReply::kDescription:
      for (const auto& holding : asked.holdings()) {
        if (holding.description() == reply.description().id()) {
          throw Trouble("protocol", "the gateway describes a run that this phone has met");
        }
      }
      return meet(reply.description(), asked);
    case pb::CheckInReply::kTask: {
      if (!is_hex(reply.task().id(), 32) || !std::isfinite(reply.task().seconds_left())) {
        throw Trouble("protocol", "a task has no id or no end");
      }
      const Work work{reply.task(), now() + reply.task().seconds_left()};
      kept_.begin(work);
      return go_on(work);
    }
    default:
      throw Trouble("protocol", "the gateway answers a check-in with nothing");
  }
}

pb::CheckInRequest Phone::request() {
  pb::CheckInRequest request;
  request.set_app("fedhead-phone " FEDHEAD_VERSION " (C++)");
  for (const auto& runtime : runtimes()) request.add_formats(runtime.format);
  for (const auto* ability :
       {"sgd", "momentum", "weight-decay", "mu", "correction", "preconditioner", "statistics",
        "evaluate", "clip", "codec:int8", "codec:drive"}) {
    request.add_abilities(ability);
  }
  add_holdings(request);
  request.set_ready(is_allowed(settings_.allow));
  request.set_wait_seconds(wait_seconds_);
  return request;
}

// One run's trouble is none of the others': a problem is said only where no run can be joined.
void Phone::add_holdings(pb::CheckInRequest& request) {
  auto problem = problem_;
  std::optional<std::vector<ClassFolder>> folders;
  std::set<std::string> uncounted;
  for (const auto& met : kept_.met()) {
    try {
      if (!folders) folders = this->folders();
      const auto parts = counted(met, *folders);
      const bool is_private = met.description.private_();
      auto& holding = *request.add_holdings();
      holding.set_description(met.description.id());
      const auto train = static_cast<std::uint32_t>(parts.train.size());
      holding.set_num_examples(is_private ? std::min(train, 1U) : train);
      holding.set_num_test_examples(
          is_private ? 0 : static_cast<std::uint32_t>(parts.test.size()));
    } catch (const Trouble& trouble) {
      if (problem.empty()) problem = trouble.word();
      const auto line = one_line(trouble.what());
      if (!uncounted_.contains(line)) std::clog << "fedhead-phone: " << line << std::endl;
      uncounted.insert(line);
    }
  }
  uncounted_ = std::move(uncounted);
  if (request.holdings_size() == 0) request.set_problem(problem.substr(0, kLongestProblem));
}

double Phone::meet(const pb::Description& description, const pb::CheckInRequest& asked) {
  // Features are the hardest work that a phone does: not while its owner needs it.
  if (!asked.ready()) return pace_.again();
  problem_.clear();
  const bool has_holdings = asked.holdings_size() > 0;
  try {
    check_description(description);
    prepare(description);
  } catch (const CallError&) {
    throw;
  } catch (const Stopped&) {
    throw;
  } catch (const Declined&) {
    return pace_.again();
  } catch (const Trouble& trouble) {
    return unmet(description, trouble.word(), trouble.what(), has_holdings);
  } catch (const std::exception& error) {
    return unmet(description, "error", error.what(), has_holdings);
  }
  return 0;
}

double Phone::unmet(const pb::Description& description, const std::string& word,
                    const std::string& words, bool has_holdings) {
  const auto pause = fail("cannot take part in run " + description.name() + ": " + words);
  if (has_holdings) return std::min(pause, kLongestUnmet);
  problem_ = word;
  return pause;
}

void Phone::prepare(const pb::Description& description) {
  const auto goes_on = this->goes_on(0);
  auto& trainer = trainer_of(description, goes_on);
  Met met{description, static_cast<std::uint32_t>(trainer.input_size())};
  examples_of(met, trainer, goes_on);
  kept_.meet(met);
  std::set<std::string> fingerprints;
  for (const auto& one : kept_.met()) fingerprints.insert(one.description.fingerprint());
  keep_features(settings_.state / "features", fingerprints);
  std::clog << "fedhead-phone: run " << one_line(description.name()) << ": joined it with "
            << prepared_.train.count() << " examples to train on" << std::endl;
}

Trainer& Phone::trainer_of(const pb::Description& description, const GoesOn& goes_on) {
  const Runtime* runtime = nullptr;
  const auto& backbone = chosen(description, runtime);
  // Each time: a signature expires, and a newer version may have been accepted meanwhile.
  const Trust trust(settings_.trusted, settings_.state / "accepted", "backbone");
  const bool is_trusting = fs::exists(settings_.trusted);
  Statement statement;
  if (is_trusting) {
    statement = trust.check(backbone.statement(), backbone.signature(),
                            {"." + backbone.format(), 0, backbone.file().sha256(),
                             backbone.file().size(), "", description.fingerprint()},
                            static_cast<std::int64_t>(now()));
  }
  if (trainer_ && loaded_ == backbone.file().sha256() &&
      trainer_->fingerprint() == description.fingerprint()) {
    if (is_trusting) trust.accept(statement);
    return *trainer_;
  }
  const auto file = blobs_.file(backbone.file(), kLargestBackbone, goes_on);
  if (is_trusting) trust.accept(statement);
  trainer_.reset();
  try {
    trainer_ = runtime->load(file);
  } catch (const std::exception& error) {
    throw Trouble("damaged-backbone", error.what());
  }
  loaded_ = backbone.file().sha256();
  if (trainer_->fingerprint() != description.fingerprint()) {
    trainer_.reset();
    throw Trouble("foreign-fingerprint", "the file is of another backbone than the run's");
  }
  if (trainer_->num_classes() != static_cast<std::size_t>(description.classes_size())) {
    throw Trouble("damaged-backbone", "the file is for another number of classes");
  }
  return *trainer_;
}

GoesOn Phone::goes_on(double deadline) const {
  using Clock = std::chrono::steady_clock;
  return [this, deadline, next = Clock::now() + kBetween]() mutable {
    if (stop_ != nullptr && *stop_) throw Stopped();
    if (deadline > 0 && now() > deadline) throw Trouble("late", "the round's time is over");
    if (Clock::now() < next) return;
    if (!is_allowed(settings_.allow)) throw Declined();
    next = Clock::now() + kBetween;
  };
}

}  // namespace fedhead
