#include "work.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <set>

#include "../codecs.h"
#include "trouble.h"

namespace fedhead {
namespace {

constexpr std::uint64_t kMostNumbers = (1 << 23) - 1;  // of a head
constexpr std::uint64_t kMostSquares = 1 << 24;        // of a preconditioner
constexpr std::uint64_t kMostSteps = 1 << 20;          // of a task
constexpr std::size_t kSharpness = 49;                 // values of 1 / temperature

[[noreturn]] void impossible(const std::string& what) { throw Trouble("impossible-task", what); }
[[noreturn]] void unable(const std::string& what) { throw Trouble("unable", what); }

void check_number(const char* name, double value, bool may_be_zero) {
  if (!std::isfinite(value) || value < 0 || (value == 0 && !may_be_zero)) {
    impossible(std::string(name) + " is " + std::to_string(value));
  }
}

void check_steps(const pb::Training& training, std::uint64_t num_examples) {
  const std::uint64_t epochs = training.epochs(), size = training.batch_size();
  if (epochs < 1 || size < 1 || epochs > kMostSteps ||
      epochs * ((num_examples + size - 1) / size) > kMostSteps) {
    impossible(std::to_string(epochs) + " epochs in batches of " + std::to_string(size) +
               ", expected at most " + std::to_string(kMostSteps) + " steps");
  }
}

void check_training(const pb::Task& task) {
  const auto& training = task.training();
  if (!training.optimizer().empty() && training.optimizer() != "sgd") {
    unable(training.optimizer());
  }
  check_number("lr", training.lr(), false);
  check_number("momentum", training.momentum(), true);
  if (training.momentum() >= 1) impossible("momentum is not below 1");
  check_number("weight_decay", training.weight_decay(), true);
  check_number("mu", training.mu(), true);
  check_number("clip", task.clip(), true);
  check_number("unit_norm", task.unit_norm(), true);
  check_steps(training, task.num_examples());
  const auto& codec = task.codec();
  if (!codec.empty() && codec != "none" && codec != "int8" && codec != "drive") {
    unable("codec:" + codec);
  }
}

void check_fields(const pb::Task& task) {
  std::set<std::string> able;
  if (task.kind() == pb::STATISTICS) able = {"moments", "gram"};
  if (task.kind() == pb::SGD) able = {"delta"};
  if (task.kind() == pb::SGD && task.clip() > 0) able = {"clipped_delta", "within_clip"};
  for (const auto& field : task.fields()) {
    if (able.erase(field) == 0) unable("field " + field);
  }
}

// The 49 mean losses of common.temperature, from 1/T = 1/4096 to 4096, and more.
struct Judged {
  double loss = 0;
  std::uint32_t correct = 0;
  std::array<double, kSharpness> losses{};
};

void judge_row(const float* row, std::size_t classes, std::size_t label, bool with_losses,
               Judged& judged) {
  const auto best = static_cast<std::size_t>(std::max_element(row, row + classes) - row);
  judged.correct += best == label ? 1 : 0;
  const auto loss_at = [&](double sharpness) {
    double sum = 0;
    for (std::size_t k = 0; k < classes; ++k) {
      sum += std::exp(sharpness * (static_cast<double>(row[k]) - row[best]));
    }
    return std::log(sum) + sharpness * (static_cast<double>(row[best]) - row[label]);
  };
  judged.loss += loss_at(1);
  for (std::size_t i = 0; with_losses && i < kSharpness; ++i) {
    judged.losses[i] += loss_at(std::exp2((static_cast<double>(i) - 24) / 2));
  }
}

Judged judge(const Examples& examples, const Floats& head, Trainer& trainer, bool with_losses) {
  const auto logits = trainer.logits(examples, head);
  const auto classes = trainer.num_classes();
  Judged judged;
  for (std::size_t i = 0; i < examples.count(); ++i) {
    for (std::size_t k = 0; k < classes; ++k) {
      if (!std::isfinite(logits[i * classes + k])) throw Trouble("not-finite", "a logit");
    }
    judge_row(&logits[i * classes], classes, static_cast<std::size_t>(examples.labels[i]),
              with_losses, judged);
  }
  const auto count = static_cast<double>(examples.count());
  judged.loss /= count;
  for (auto& loss : judged.losses) loss /= count;
  return judged;
}

template <typename T>
std::string bytes_of(const std::vector<T>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T)};
}

// In 32 bits where all numbers fit, else in 64.
std::string smallest(const std::vector<std::uint64_t>& sums) {
  const auto fits = [](std::uint64_t sum) { return sum >> 32 == 0; };
  if (!std::all_of(sums.begin(), sums.end(), fits)) return bytes_of(sums);
  return bytes_of(std::vector<std::uint32_t>(sums.begin(), sums.end()));
}

Steps steps_of(const pb::Task& task, const Inputs& inputs) {
  const auto& training = task.training();
  Steps steps;
  steps.lr = training.lr();
  steps.epochs = training.epochs();
  steps.batch_size = training.batch_size();
  steps.batch_seed = training.batch_seed();
  steps.momentum = training.momentum();
  steps.weight_decay = training.weight_decay();
  steps.mu = training.mu();
  steps.unit_norm = task.unit_norm();
  steps.correction = inputs.correction;
  steps.preconditioner = inputs.preconditioner;
  return steps;
}

std::string encoded(const pb::Task& task, Floats delta, std::size_t classes) {
  const auto width = delta.size() / classes;
  const auto& codec = find_codec(task.codec().empty() ? "none" : task.codec());
  const auto payload = codec.encode({std::move(delta), classes, width}, task.codec_seed());
  return {payload.begin(), payload.end()};
}

void do_private(const pb::Task& task, const Inputs& inputs, const Examples& examples,
                Trainer& trainer, const GoesOn& goes_on, Outcome& outcome) {
  const auto sent = trainer.train_clipped(examples, inputs.head, steps_of(task, inputs),
                                          task.clip(), goes_on);
  outcome.submission.set_num_examples(1);
  for (const auto& field : task.fields()) {
    outcome.arrays[field] = field == "within_clip"
                                ? bytes_of(std::vector<std::uint32_t>{sent.is_within ? 1U : 0U})
                                : bytes_of(sent.numbers);
  }
}

void do_training(const pb::Task& task, const Inputs& inputs, const Examples& examples,
                 Trainer& trainer, const GoesOn& goes_on, Outcome& outcome) {
  outcome.submission.set_loss_before(judge(examples, inputs.head, trainer, false).loss);
  auto head = trainer.train(examples, inputs.head, steps_of(task, inputs), goes_on);
  outcome.submission.set_loss_after(judge(examples, head, trainer, false).loss);
  for (std::size_t i = 0; i < head.size(); ++i) {
    head[i] -= inputs.head[i];
    if (!std::isfinite(head[i])) throw Trouble("not-finite", "the trained head");
  }
  if (task.fields_size() > 0) {
    outcome.arrays["delta"] = encoded(task, std::move(head), trainer.num_classes());
  }
}

void do_statistics(const pb::Task& task, const Inputs& inputs, const Examples& examples,
                   Trainer& trainer, const GoesOn& goes_on, Outcome& outcome) {
  const auto loss = judge(examples, inputs.head, trainer, false).loss;
  outcome.submission.set_loss_before(loss);
  outcome.submission.set_loss_after(loss);
  const auto sums = trainer.statistics(examples, goes_on);
  for (const auto& field : task.fields()) {
    outcome.arrays[field] = smallest(field == "gram" ? sums.gram : sums.moments);
  }
}

void do_evaluation(const Inputs& inputs, const Examples& examples, Trainer& trainer,
                   Outcome& outcome) {
  const auto judged = judge(examples, inputs.head, trainer, true);
  outcome.submission.set_loss_before(judged.loss);
  outcome.submission.set_loss_after(judged.loss);
  outcome.submission.set_correct(judged.correct);
  outcome.submission.set_losses(
      bytes_of(std::vector<double>(judged.losses.begin(), judged.losses.end())));
}

}  // namespace

Sizes check_task(const pb::Task& task, Trainer& trainer) {
  const std::uint64_t classes = task.num_classes(), width = std::uint64_t{task.num_features()} + 1;
  if (classes != trainer.num_classes() || width != trainer.num_features() + 1 ||
      classes * width > kMostNumbers) {
    impossible("a head of " + std::to_string(classes) + " classes and " +
               std::to_string(task.num_features()) + " features, but the backbone's file is for " +
               std::to_string(trainer.num_classes()) + " and " +
               std::to_string(trainer.num_features()));
  }
  if (task.kind() != pb::SGD && task.kind() != pb::STATISTICS && task.kind() != pb::EVALUATE) {
    unable("kind " + std::to_string(task.kind()));
  }
  check_fields(task);
  if (task.kind() == pb::SGD) check_training(task);
  if (task.preconditioner().size() > 0 && width * width > kMostSquares) {
    impossible("a preconditioner of " + std::to_string(width) + " rows");
  }
  return {classes * width * sizeof(float), width * width * sizeof(float)};
}

Outcome do_task(const pb::Task& task, const Inputs& inputs, const Examples& examples,
                Trainer& trainer, const GoesOn& goes_on) {
  // A private task does not say how many examples there are.
  if (task.kind() == pb::SGD) check_steps(task.training(), examples.count());
  Outcome outcome;
  auto& submission = outcome.submission;
  submission.set_task(task.id());
  submission.set_fingerprint(trainer.fingerprint());
  submission.set_outcome(pb::DONE);
  submission.set_num_examples(static_cast<std::uint32_t>(examples.count()));
  if (task.kind() == pb::STATISTICS) {
    do_statistics(task, inputs, examples, trainer, goes_on, outcome);
  } else if (task.kind() == pb::EVALUATE) {
    do_evaluation(inputs, examples, trainer, outcome);
  } else if (task.clip() > 0) {
    do_private(task, inputs, examples, trainer, goes_on, outcome);
  } else {
    do_training(task, inputs, examples, trainer, goes_on, outcome);
  }
  return outcome;
}

}  // namespace fedhead
