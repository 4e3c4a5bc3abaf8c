// What a phone keeps of runs and of the present task, so that a kill at any moment costs little.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "phones.pb.h"

namespace fedhead {

namespace pb = phones::v1;

// A description that was met, and the size of images that its backbone takes.
struct Met {
  pb::Description description;
  std::uint32_t input_size = 0;
};

// A task, and when its result is late, in seconds since 1970.
struct Work {
  pb::Task task;
  double deadline = 0;
};

class Kept {
 public:
  explicit Kept(std::filesystem::path folder);

  // At most eight, those used last.
  const std::vector<Met>& met() const { return met_; }
  const Met* find(const std::string& id) const;
  void meet(const Met& met);
  void use(const std::string& id);

  std::optional<Work> work() const;
  void begin(const Work& work);

  // Of the task at work. Large arrays lie in files that are named by their SHA-256.
  std::optional<pb::Submission> result() const;
  void finish(pb::Submission submission, const std::map<std::string, std::string>& arrays);
  std::string array(const std::string& sha256) const;

  // The task and all that belongs to it.
  void forget();

 private:
  void read_met();

  std::filesystem::path folder_;
  std::vector<Met> met_;  // the one used last comes first
};

}  // namespace fedhead
