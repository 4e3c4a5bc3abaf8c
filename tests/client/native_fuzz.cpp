// Damaged bytes for everything that the C++ phone reads from outside. Built with sanitizers, so
// that a read or write out of bounds ends it; see test_native_hostile.py.
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../../client/native/codecs.h"
#include "../../client/native/safetensors.h"
#include "card.h"
#include "channel.h"
#include "pace.h"
#include "settings.h"
#include "trouble.h"
#include "trust.h"
#include "work.h"

namespace {

using namespace fedhead;

constexpr std::size_t kClasses = 3, kFeatures = 5, kExamples = 7;
constexpr std::size_t kHead = kClasses * (kFeatures + 1);

// A runtime that computes nothing, and reads all that it is given.
class Stub : public Trainer {
 public:
  std::string fingerprint() override { return std::string(64, 'a'); }
  std::size_t input_size() override { return 1; }
  std::size_t num_features() override { return kFeatures; }
  std::size_t num_classes() override { return kClasses; }
  std::string features(std::string_view image) override { return std::string(image); }

  Floats train(const Examples& examples, const Floats& head, const Steps& steps,
               const GoesOn& goes_on) override {
    Floats out = head;
    for (std::uint32_t epoch = 0; epoch < steps.epochs; ++epoch) {
      goes_on();
      for (std::size_t i = 0; i < examples.features.size(); ++i) {
        out[i % out.size()] += static_cast<float>(steps.lr) * examples.features[i];
      }
    }
    return out;
  }

  Floats logits(const Examples& examples, const Floats& head) override {
    Floats out(examples.count() * kClasses);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = head[i % head.size()];
    return out;
  }

  Sums statistics(const Examples&, const GoesOn&) override {
    return {std::vector<std::uint64_t>(21, 1ULL << 33), std::vector<std::uint64_t>(kHead, 7)};
  }
};

pb::Task task_of(pb::Kind kind) {
  pb::Task task;
  task.set_id(std::string(32, 'b'));
  task.set_kind(kind);
  task.set_num_examples(kExamples);
  task.set_num_classes(kClasses);
  task.set_num_features(kFeatures);
  if (kind == pb::SGD) task.add_fields("delta");
  if (kind == pb::STATISTICS) task.add_fields("gram");
  task.mutable_head()->set_size(kHead * sizeof(float));
  auto& training = *task.mutable_training();
  training.set_optimizer("sgd");
  training.set_lr(0.1);
  training.set_epochs(2);
  training.set_batch_size(3);
  training.set_momentum(0.5);
  task.set_codec("drive");
  return task;
}

void read_task(const std::string& bytes) {
  pb::CheckInReply reply;
  if (!reply.ParseFromString(bytes)) throw std::runtime_error("no message");
  if (reply.has_later()) Pace().later(reply.later());
  const auto& task = reply.task();
  Stub trainer;
  const auto sizes = check_task(task, trainer);
  if (sizes.head != kHead * sizeof(float)) std::abort();
  const Examples examples{std::string(kExamples * kFeatures, 'x'),
                          std::vector<std::int64_t>(kExamples, 2)};
  const auto goes_on = [calls = 0]() mutable {
    if (++calls > 100) throw std::runtime_error("too long");
  };
  do_task(task, {Floats(kHead, 0.5F), {}, {}}, examples, trainer, goes_on);
}

std::string reply_with(pb::Kind kind) {
  pb::CheckInReply reply;
  *reply.mutable_task() = task_of(kind);
  return reply.SerializeAsString();
}

std::string reply_with_later() {
  pb::CheckInReply reply;
  reply.mutable_later()->set_min_seconds(1);
  reply.mutable_later()->set_max_seconds(2);
  return reply.SerializeAsString();
}

std::string statement() {
  const std::string digest(64, '0');
  return "fedhead artifact v1\nkind backbone\nname run.executorch\nversion 3\nsize 100\nsha256 " +
         digest + "\ncard " + digest + "\nfingerprint " + digest +
         "\ncreated 1795873446\nexpires 1827409446\n";
}

std::string archive() {
  return safetensors_bytes(
      {{{"features", {"U8", {2, 3}, "abcdef"}}, {"labels", {"I64", {1}, "12345678"}}},
       {{"fingerprint", "f"}}});
}

struct Target {
  std::vector<std::string> corpus;
  std::function<void(const std::string&)> read;
};

std::map<std::string, Target> targets() {
  return {
      {"card",
       {{"{\"a\": [1.5e-3, {\"b\": null}, \"\\\"\"], \"fingerprint\": \"0f\", \"c\": true}"},
        [](const std::string& text) { fingerprint_in(text); }}},
      {"settings",
       {{"# a\ngateway = \"host:1\"\nmax-examples = 5\nx = 'y' # z\nb = true\nf = 1.5e3\n"},
        [](const std::string& text) { parse_settings(text); }}},
      {"statement", {{statement()}, [](const std::string& text) { parse_statement(text); }}},
      {"safetensors",
       {{archive()}, [](const std::string& bytes) { parse_safetensors(bytes); }}},
      {"frame", {{framed("a message")}, [](const std::string& bytes) { unframed(bytes); }}},
      {"percent",
       {{"a%20b%zz%4", "%"},
        [](const std::string& text) { one_line(percent_decoded(text) + std::string(190, 'x')); }}},
      {"task",
       {{reply_with(pb::SGD), reply_with(pb::STATISTICS), reply_with(pb::EVALUATE),
         reply_with_later()},
        read_task}},
      {"change",
       {{std::string("\0\0\x80?\x10\0\0\0", 8) + std::string(16, 'c')},
        [](const std::string& bytes) {
          const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
          add_change({std::vector<float>(4), 2, 2}, {data, bytes.size()}, find_codec("none"), 1, 1);
        }}},
  };
}

// What a task may just ask for is done, and one step or a little momentum more is not.
bool are_limits_kept() {
  constexpr std::uint32_t kMost = 1 << 20;
  Stub trainer;
  auto task = task_of(pb::SGD);  // batches of 3
  const auto is_refused = [&](std::uint32_t examples, std::uint32_t epochs, double momentum) {
    task.set_num_examples(examples);
    task.mutable_training()->set_epochs(epochs);
    task.mutable_training()->set_momentum(momentum);
    try {
      check_task(task, trainer);
      return false;
    } catch (const Trouble& trouble) {
      return trouble.word() == "impossible-task";
    }
  };
  bool right = !is_refused(3, kMost, 0.99) && is_refused(3, kMost + 1, 0.99) &&
               is_refused(4, kMost, 0.99) && !is_refused(4, kMost / 2, 0.99) &&
               is_refused(3, 1, 1.0) && is_refused(3, ~0U, 0) && is_refused(~0U, ~0U, 0);
  // A private task says that there is one example: the phone itself counts.
  right = right && !is_refused(1, kMost, 0);
  try {
    const Examples examples{std::string(4 * kFeatures, 'x'), std::vector<std::int64_t>(4, 2)};
    do_task(task, {Floats(kHead, 0.5F), {}, {}}, examples, trainer, [] {});
    return false;
  } catch (const Trouble& trouble) {
    return right && trouble.word() == "impossible-task";
  }
}

// Changes, adds, repeats or removes a few bytes.
std::string damaged(std::string bytes, std::mt19937_64& random) {
  const auto below = [&](std::size_t most) {
    return static_cast<std::size_t>(random() % (most == 0 ? 1 : most));
  };
  for (auto times = below(4); times-- > 0 && !bytes.empty();) {
    const auto at = below(bytes.size());
    switch (random() % 6) {
      case 0: bytes[at] = static_cast<char>(random()); break;
      case 1: bytes[at] = static_cast<char>(bytes[at] ^ 1 << random() % 8); break;
      case 2: bytes.erase(at, 1 + below(8)); break;
      case 3: bytes.insert(at, 1 + below(8), static_cast<char>(random())); break;
      case 4: bytes.insert(at, bytes.substr(below(bytes.size()), below(40))); break;
      default: bytes.resize(at);
    }
  }
  return bytes;
}

}  // namespace

// Prints for each reader how many inputs it has read, and how many it has refused.
int main(int argc, char** argv) {
  const long count = argc > 1 ? std::atol(argv[1]) : 1000;
  if (!are_limits_kept()) {
    std::cerr << "a task's limits are not kept" << std::endl;
    return 1;
  }
  std::mt19937_64 random(7);
  for (const auto& [name, target] : targets()) {
    long read = 0, refused = 0;
    for (long i = 0; i < count; ++i) {
      const auto& whole = target.corpus[static_cast<std::size_t>(i) % target.corpus.size()];
      try {
        target.read(i < 4 ? whole : damaged(whole, random));
        ++read;
      } catch (const std::exception&) {
        ++refused;
      }
    }
    std::cout << name << ' ' << read << ' ' << refused << std::endl;
  }
}
