#include "gateway.h"

namespace fedhead {
namespace {

constexpr double kSeconds = 60;

}  // namespace

template <typename Reply, typename Request>
Reply Gateway::call(const char* method, const Request& request, double seconds) {
  std::string bytes;
  if (!request.SerializeToString(&bytes)) {
    throw CallError(Code::kInvalidArgument, "a text to be sent is not UTF-8");
  }
  Reply reply;
  if (!reply.ParseFromString(channel_.call(method, bytes, seconds))) {
    throw CallError(Code::kInternal, std::string("the reply to ") + method + " cannot be read");
  }
  return reply;
}

pb::CheckInReply Gateway::check_in(const pb::CheckInRequest& request) {
  return call<pb::CheckInReply>("CheckIn", request, kSeconds + request.wait_seconds());
}

pb::Part Gateway::fetch(const pb::FetchRequest& request) {
  return call<pb::Part>("Fetch", request, kSeconds);
}

pb::UploadReply Gateway::upload(const pb::Part& part) {
  return call<pb::UploadReply>("Upload", part, kSeconds);
}

pb::Verdict Gateway::submit(const pb::Submission& submission) {
  return call<pb::Verdict>("Submit", submission, kSeconds);
}

pb::Model Gateway::latest(const pb::LatestRequest& request) {
  return call<pb::Model>("Latest", request, kSeconds);
}

}  // namespace fedhead
