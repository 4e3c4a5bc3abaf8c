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
  void unmeet(const std::string& id);  // so that the gateway describes the run again
  void use(const std::string& id);

  std::optional<Work> work() const;
  void begin(const Work& work);

  // Of a task; nothing if it is still to be computed, or if a byte of it or of its arrays is not
  // what was written. Large arrays lie in files that are named by their SHA-256.
  std::optional<pb::Submission> result(const std::string& task) const;
  void finish(pb::Submission submission, const std::map<std::string, std::string>& arrays);
  std::string array(const std::string& sha256) const;

  // The task, and then all that belongs to it: a task without a result is still to be done.
  void forget();

 private:
  void read_met();
  bool is_whole(const pb::Array& array) const;

  std::filesystem::path folder_;
  std::vector<Met> met_;  // the one used last comes first
};

}  // namespace fedhead
