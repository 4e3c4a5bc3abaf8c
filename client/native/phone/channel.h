// Unary gRPC calls over TLS, by libcurl: the framing of https://grpc.io's protocol over HTTP/2.
#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fedhead {

// The status codes of gRPC that a phone treats differently, by their numbers.
enum class Code : int {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kResourceExhausted = 8,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

class CallError : public std::runtime_error {
 public:
  CallError(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}

  Code code() const { return code_; }

 private:
  Code code_;
};

// A message with the five bytes that gRPC sets before it, and the reverse. The reverse throws
// CallError unless the bytes are exactly one message that is not compressed.
std::string framed(std::string_view message);
std::string_view unframed(std::string_view frame);

// A grpc-message: %41 is A. What is no such code stays as it is.
std::string percent_decoded(std::string_view text);

// Makes one call after the other on one connection, which is opened when it is needed. It trusts
// the authorities in a file and no others, and checks the server's name.
class Channel {
 public:
  // With `stop`, a call ends soon after it becomes true, by Stopped.
  Channel(std::string address, const std::filesystem::path& authority, std::string token,
          const std::atomic<bool>* stop);
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // The reply's bytes. Throws CallError.
  std::string call(const std::string& method, std::string_view request, double seconds);

 private:
  struct Curl;
  std::unique_ptr<Curl> curl_;
  std::string address_, authority_, token_;
  const std::atomic<bool>* stop_;
};

}  // namespace fedhead
