// The part of a phone's life that is about a task.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iostream>
#include <set>

#include "allow.h"
#include "phone.h"
#include "trouble.h"

namespace fedhead {
namespace {

constexpr std::size_t kLongestReason = 200;
constexpr int kMostTries = 5;  // of an upload that the gateway has lost
constexpr float kLargest = 1e30F;

static_assert(std::endian::native == std::endian::little, "as the messages are");

double clock_seconds() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

double unix_seconds() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

Floats floats_of(const std::string& bytes) {
  Floats numbers(bytes.size() / sizeof(float));
  std::memcpy(numbers.data(), bytes.data(), numbers.size() * sizeof(float));
  for (const auto x : numbers) {
    if (!(std::fabs(x) <= kLargest)) {  // true of NaN, too
      throw Trouble("impossible-task", "an array has a number that is not finite or too large");
    }
  }
  return numbers;
}

bool is_temporary(Code code) {
  switch (code) {
    case Code::kCancelled:
    case Code::kUnavailable:
    case Code::kResourceExhausted:
    case Code::kDeadlineExceeded:
    case Code::kUnauthenticated:
    case Code::kInternal:
    case Code::kUnknown:
      return true;
    default:
      return false;
  }
}

bool is_lost(const CallError& error) {
  return error.code() == Code::kOutOfRange || error.code() == Code::kDataLoss;
}

// Nothing of the owner's, and another file may mend it.
bool is_of_backbone(const Trouble& trouble) {
  return trouble.word() == "unsigned-backbone" || trouble.word() == "damaged-backbone" ||
         trouble.word() == "foreign-fingerprint";
}

void tell(const pb::Task& task, const pb::Submission& submission, const pb::Verdict& verdict) {
  const auto done = submission.outcome() == pb::DONE ? "done" : one_line(submission.reason());
  std::clog << "fedhead-phone: round " << task.round() << ": " << done << ": ";
  switch (verdict.what()) {
    case pb::Verdict::ACCEPTED: std::clog << "accepted"; break;
    case pb::Verdict::LATE: std::clog << "late"; break;
    case pb::Verdict::REFUSED: std::clog << "refused"; break;
    case pb::Verdict::NOTED: std::clog << "noted"; break;
    default: std::clog << "?";
  }
  if (!verdict.reason().empty()) std::clog << " (" << one_line(verdict.reason()) << ")";
  std::clog << std::endl;
}

}  // namespace

double Phone::go_on(const Work& work) {
  const auto& task = work.task;
  auto submission = kept_.result(task.id());
  const bool is_late = unix_seconds() > work.deadline;
  try {
    if (!submission && is_late) {
      std::clog << "fedhead-phone: round " << task.round() << ": it is too late for the task"
                << std::endl;
      kept_.forget();
      return pace_.again();
    }
    if (!submission) {
      compute(work);
      submission = kept_.result(task.id());
      if (!submission) throw Trouble("disk", "a result was not kept");
    }
    const auto verdict = sent(work, *submission);
    kept_.forget();
    keep_blobs(task);
    tell(task, *submission, verdict);
    return pace_.later(verdict.later());
  } catch (const CallError& error) {
    // What is computed is given up only where the gateway refuses it, or where it is late as well.
    if (!is_temporary(error.code()) && (!submission || is_late)) kept_.forget();
    throw;
  }
}

// Uploads and submits, again where the gateway has lost what had arrived.
pb::Verdict Phone::sent(const Work& work, pb::Submission submission) {
  const auto started = clock_seconds();
  for (int tries = 1;; ++tries) {
    try {
      for (const auto& array : submission.arrays()) {
        if (array.data().empty()) upload(submission, array);
      }
    } catch (const CallError& error) {
      // The result may have arrived before, and only the verdict was lost: it is asked for.
      if (error.code() != Code::kNotFound) throw;
    }
    if (tells_times(work.task)) submission.set_upload_seconds(clock_seconds() - started);
    try {
      return gateway_.submit(submission);
    } catch (const CallError& error) {
      const auto code = error.code();
      if (code == Code::kNotFound || code == Code::kInvalidArgument) kept_.forget();
      if (!is_lost(error) || tries == kMostTries) throw;
    }
  }
}

// How long a private task takes says how many examples there are.
bool Phone::tells_times(const pb::Task& task) const {
  const auto* met = kept_.find(task.description());
  return met != nullptr && !met->description.private_() && task.clip() == 0;
}

// The result of the task is on the disk afterwards, whatever became of it.
void Phone::compute(const Work& work) {
  Outcome outcome;
  auto& submission = outcome.submission;
  const auto failed = [&](const std::string& reason) {
    outcome = Outcome();
    submission.set_outcome(pb::FAILED);
    submission.set_reason(reason.substr(0, kLongestReason));
  };
  try {
    outcome = computed(work);
  } catch (const Declined& declined) {
    submission.set_outcome(pb::DECLINED);
    submission.set_reason(declined.what());
  } catch (const CallError&) {
    throw;
  } catch (const Stopped&) {
    throw;
  } catch (const Trouble& trouble) {
    std::clog << "fedhead-phone: " << one_line(trouble.what()) << std::endl;
    if (is_of_backbone(trouble)) kept_.unmeet(work.task.description());
    failed(trouble.word());
  } catch (const std::exception& error) {  // the gateway must not wait for nothing
    std::clog << "fedhead-phone: " << one_line(error.what()) << std::endl;
    failed("error");
  }
  submission.set_task(work.task.id());
  submission.set_fingerprint(work.task.fingerprint());
  kept_.finish(submission, outcome.arrays);
}

Outcome Phone::computed(const Work& work) {
  const auto& task = work.task;
  const auto* found = kept_.find(task.description());
  if (found == nullptr || found->description.fingerprint() != task.fingerprint()) {
    throw Trouble("impossible-task", "it is of a run that this phone has not met");
  }
  const Met met = *found;
  kept_.use(task.description());
  if (!is_allowed(settings_.allow)) throw Declined();
  const auto goes_on = this->goes_on(work.deadline);
  auto& trainer = trainer_of(met.description, goes_on);
  const auto sizes = check_task(task, trainer);
  const bool is_private = met.description.private_();
  if (is_private != (task.clip() > 0) || (is_private && task.kind() != pb::SGD)) {
    throw Trouble("impossible-task", "it does not keep what the run's description promises");
  }
  const auto started = clock_seconds();
  Inputs inputs{floats_of(blobs_.content(task.head(), sizes.head, goes_on)), {}, {}};
  if (!task.correction().sha256().empty()) {
    inputs.correction = floats_of(blobs_.content(task.correction(), sizes.head, goes_on));
  }
  if (!task.preconditioner().sha256().empty()) {
    inputs.preconditioner =
        floats_of(blobs_.content(task.preconditioner(), sizes.preconditioner, goes_on));
  }
  const auto fetched = clock_seconds();
  const auto& prepared = examples_of(met, trainer, goes_on);
  const auto& examples = task.kind() == pb::EVALUATE ? prepared.test : prepared.train;
  const auto count = is_private ? std::min<std::size_t>(examples.count(), 1) : examples.count();
  if (examples.count() == 0 || count != task.num_examples()) {
    throw Trouble("images: they have changed",
                  std::to_string(count) + " examples, the task is for " +
                      std::to_string(task.num_examples()));
  }
  auto outcome = do_task(task, inputs, examples, trainer, goes_on);
  if (tells_times(task)) {
    outcome.submission.set_fetch_seconds(fetched - started);
    outcome.submission.set_train_seconds(clock_seconds() - fetched);
  }
  return outcome;
}

void Phone::upload(const pb::Submission& submission, const pb::Array& array) {
  const auto bytes = kept_.array(array.sha256());
  auto offset = upload_part(submission, array, bytes, bytes.size());  // asks how much is there
  for (int failures = 0; offset < bytes.size();) {
    try {
      const auto there = upload_part(submission, array, bytes, offset);
      if (there <= offset) throw CallError(Code::kInternal, "an upload does not get ahead");
      offset = there;
    } catch (const CallError& error) {
      if (!is_lost(error) || ++failures == kMostTries) throw;
      offset = upload_part(submission, array, bytes, bytes.size());
    }
  }
}

// Sends the part from an offset on, none at the end; returns how many bytes are there.
std::uint64_t Phone::upload_part(const pb::Submission& submission, const pb::Array& array,
                                 const std::string& bytes, std::uint64_t offset) {
  pb::Part part;
  part.set_task(submission.task());
  part.set_sha256(array.sha256());
  part.set_size(bytes.size());
  if (offset < bytes.size()) {
    part.set_offset(offset);
    part.set_data(bytes.substr(offset, kPart));
  }
  const auto there = gateway_.upload(part).size();
  if (there > bytes.size()) throw CallError(Code::kInternal, "an upload has become too long");
  return there;
}

// Backbones are needed again, and a preconditioner may be; heads are not.
void Phone::keep_blobs(const pb::Task& task) {
  std::set<std::string> names{task.preconditioner().sha256()};
  for (const auto& met : kept_.met()) {
    for (const auto& backbone : met.description.backbones()) names.insert(backbone.file().sha256());
  }
  blobs_.keep(names);
}

}  // namespace fedhead
