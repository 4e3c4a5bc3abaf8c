// A phone's life: it checks in, prepares for runs, does tasks and sends what they gave.
//
// An app makes a Phone of its Settings, calls turn(), and calls it again after as many seconds as
// that said: README.md has an example.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "blobs.h"
#include "channel.h"
#include "files.h"
#include "gateway.h"
#include "images.h"
#include "kept.h"
#include "pace.h"
#include "settings.h"
#include "split.h"
#include "trainer.h"
#include "work.h"

namespace fedhead {

class Phone {
 public:
  // Two phones must not share a state folder. With `stop`, a turn ends soon after it becomes true,
  // by Stopped. `wait_seconds`: how long the gateway may hold a check-in.
  Phone(Settings settings, std::uint32_t wait_seconds, const std::atomic<bool>* stop);

  // Checks in, or goes on with a task, up to the next pause. Returns how many seconds that is. No
  // failure of the network, the server or the disk is an exception here.
  double turn();

  // Whether nothing failed in the last turn.
  bool is_well() const { return is_well_; }

 private:
  struct Prepared {
    std::string key;  // of what the examples were made of
    Examples train, test;
  };

  double take_turn();
  pb::CheckInRequest request();
  void add_holdings(pb::CheckInRequest& request);
  double meet(const pb::Description& description, const pb::CheckInRequest& asked);
  double unmet(const pb::Description& description, const std::string& word,
               const std::string& words, bool has_holdings);
  void prepare(const pb::Description& description);
  Trainer& trainer_of(const pb::Description& description, const GoesOn& goes_on);
  std::vector<ClassFolder> folders() const;
  std::vector<Image> images_of(const Met& met, const std::vector<ClassFolder>& folders);
  Positions used(const Met& met, std::size_t total) const;
  Parts parts_of(const Met& met, const std::vector<std::int64_t>& labels) const;
  // Of the examples that there are now.
  Parts counted(const Met& met, const std::vector<ClassFolder>& folders);
  const Prepared& examples_of(const Met& met, Trainer& trainer, const GoesOn& goes_on);
  double go_on(const Work& work);
  void compute(const Work& work);
  pb::Verdict sent(const Work& work, pb::Submission submission);
  bool tells_times(const pb::Task& task) const;
  Outcome computed(const Work& work);
  void upload(const pb::Submission& submission, const pb::Array& array);
  std::uint64_t upload_part(const pb::Submission& submission, const pb::Array& array,
                            const std::string& bytes, std::uint64_t offset);
  void keep_blobs(const pb::Task& task);
  GoesOn goes_on(double deadline) const;
  double fail(const std::string& words);

  Settings settings_;
  std::uint32_t wait_seconds_;
  const std::atomic<bool>* stop_;
  std::unique_ptr<FolderLock> lock_;
  Channel channel_;
  Gateway gateway_;
  Kept kept_;
  Blobs blobs_;
  Pace pace_;
  std::unique_ptr<Trainer> trainer_;
  std::string loaded_;  // SHA-256 of the trainer's file
  Prepared prepared_;
  std::string problem_, said_;
  std::set<std::string> uncounted_;                // why runs have no holding; told to the owner
  std::map<std::uint64_t, std::size_t> left_out_;  // images, by the size expected; likewise
  bool is_well_ = true;
};

}  // namespace fedhead
