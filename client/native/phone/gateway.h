// The calls of common/phones/phones.proto.
#pragma once

#include <string>

#include "channel.h"
#include "phones.pb.h"

namespace fedhead {

namespace pb = phones::v1;

constexpr std::size_t kInlineUpdate = 256 << 10;  // bytes of an array in a submission
constexpr std::size_t kPart = 256 << 10;          // of a blob in one call

// Throws CallError if the gateway cannot be reached, refuses, or sends what is no reply.
class Gateway {
 public:
  explicit Gateway(Channel& channel) : channel_(channel) {}

  pb::CheckInReply check_in(const pb::CheckInRequest& request);
  pb::Part fetch(const pb::FetchRequest& request);
  pb::UploadReply upload(const pb::Part& part);
  pb::Verdict submit(const pb::Submission& submission);
  pb::Model latest(const pb::LatestRequest& request);

 private:
  template <typename Reply, typename Request>
  Reply call(const char* method, const Request& request, double seconds);

  Channel& channel_;
};

}  // namespace fedhead
