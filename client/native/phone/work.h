// A task done: its numbers in, a submission and its arrays out.
#pragma once

#include <map>
#include <string>

#include "gateway.h"
#include "trainer.h"

namespace fedhead {

// What a task's blobs hold; what there is none of is empty.
struct Inputs {
  Floats head, correction, preconditioner;
};

// Sizes in bytes of a task's blobs; throws Trouble "impossible-task" unless the task's numbers are
// such that a phone can do it with this backbone, "unable" where they ask for what it cannot do.
struct Sizes {
  std::uint64_t head, preconditioner;
};
Sizes check_task(const pb::Task& task, Trainer& trainer);

// What is sent: counts and losses, and arrays by their fields.
struct Outcome {
  pb::Submission submission;
  std::map<std::string, std::string> arrays;
};

// Does a checked task with the examples that it is about, at least one. Throws Trouble
// "impossible-task" where these make too many steps.
Outcome do_task(const pb::Task& task, const Inputs& inputs, const Examples& examples,
                Trainer& trainer, const GoesOn& goes_on);

}  // namespace fedhead
