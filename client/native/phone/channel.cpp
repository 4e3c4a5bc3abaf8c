#include "channel.h"

#include <curl/curl.h>

#include <charconv>
#include <cmath>
#include <map>
#include <utility>

#include "trouble.h"

namespace fedhead {
namespace {

constexpr std::size_t kPrefix = 5;           // a flag and the length
constexpr std::size_t kLargestReply = 4 << 20;
constexpr std::size_t kLargestHeaders = 64 << 10;
constexpr long kConnectSeconds = 20;
constexpr long kKeepaliveSeconds = 20;

// What a call has received up to now.
struct Received {
  std::string body;
  std::map<std::string, std::string> headers;  // with the trailers; names are lower-case
  std::size_t header_bytes = 0;
  const std::atomic<bool>* stop = nullptr;

  bool is_stopped() const { return stop != nullptr && *stop; }
};

std::size_t take_body(char* data, std::size_t, std::size_t count, void* into) {
  auto& received = *static_cast<Received*>(into);
  if (count > kLargestReply + kPrefix - received.body.size()) return 0;
  received.body.append(data, count);
  return count;
}

std::size_t take_header(char* data, std::size_t, std::size_t count, void* into) {
  auto& received = *static_cast<Received*>(into);
  received.header_bytes += count;
  if (received.header_bytes > kLargestHeaders) return 0;
  const std::string_view line(data, count);
  if (line.substr(0, 5) == "HTTP/") received.headers.clear();
  const auto colon = line.find(':');
  if (colon == std::string_view::npos || colon == 0) return count;
  std::string name(line.substr(0, colon));
  for (auto& c : name) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  auto value = line.substr(colon + 1);
  while (!value.empty() && value.front() == ' ') value.remove_prefix(1);
  while (!value.empty() && std::string_view(" \r\n").find(value.back()) != std::string_view::npos) {
    value.remove_suffix(1);
  }
  received.headers[name] = std::string(value);
  return count;
}

int may_end(void* received, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return static_cast<Received*>(received)->is_stopped() ? 1 : 0;
}

// A list of a request's headers.
class Headers {
 public:
  ~Headers() { curl_slist_free_all(list_); }
  Headers() = default;
  Headers(const Headers&) = delete;
  Headers& operator=(const Headers&) = delete;

  void add(const std::string& line) {
    auto* longer = curl_slist_append(list_, line.c_str());
    if (longer == nullptr) throw std::bad_alloc();
    list_ = longer;
  }

  curl_slist* list() const { return list_; }

 private:
  curl_slist* list_ = nullptr;
};

Code code_of(CURLcode error) {
  switch (error) {
    case CURLE_OPERATION_TIMEDOUT:
      return Code::kDeadlineExceeded;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
      return Code::kUnauthenticated;  // of the server: nothing that another try soon would mend
    case CURLE_WRITE_ERROR:
      return Code::kInternal;  // the reply is too large
    default:
      return Code::kUnavailable;
  }
}

Code code_of_http(long status) {
  if (status == 401) return Code::kUnauthenticated;
  if (status == 404) return Code::kUnimplemented;
  if (status == 429 || status == 502 || status == 503 || status == 504) return Code::kUnavailable;
  return Code::kUnknown;
}

// What the reply says of the call; throws unless it is OK.
void check_status(const Received& received, long http) {
  const auto header = [&](const char* name) {
    const auto found = received.headers.find(name);
    return found == received.headers.end() ? std::string() : found->second;
  };
  if (http != 200) throw CallError(code_of_http(http), "HTTP status " + std::to_string(http));
  if (header("content-type").rfind("application/grpc", 0) != 0) {
    throw CallError(Code::kUnknown, "the server does not speak gRPC");
  }
  const auto text = header("grpc-status");
  int code = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), code);
  if (error != std::errc() || end != text.data() + text.size() || code < 0 || code > 16) {
    throw CallError(Code::kInternal, "the reply has no status");
  }
  if (code != 0) {
    throw CallError(static_cast<Code>(code), one_line(percent_decoded(header("grpc-message"))));
  }
}

}  // namespace

std::string framed(std::string_view message) {
  std::string frame(1, '\0');
  for (int shift = 24; shift >= 0; shift -= 8) {
    frame += static_cast<char>(message.size() >> shift & 0xFF);
  }
  return frame.append(message);
}

std::string_view unframed(std::string_view frame) {
  std::size_t length = 0;
  for (std::size_t i = 1; i < kPrefix && i < frame.size(); ++i) {
    length = length << 8 | static_cast<unsigned char>(frame[i]);
  }
  if (frame.size() < kPrefix || frame[0] != 0 || length != frame.size() - kPrefix) {
    throw CallError(Code::kInternal, "the reply is not one message of gRPC");
  }
  return frame.substr(kPrefix);
}

std::string percent_decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '%' && i + 2 < text.size()) {
      const auto [end, error] = std::from_chars(&text[i + 1], &text[i + 1] + 2, value, 16);
      if (error == std::errc() && end == &text[i + 1] + 2) {
        out += static_cast<char>(value);
        i += 2;
        continue;
      }
    }
    out += text[i];
  }
  return out;
}

struct Channel::Curl {
  Curl() {
    static const bool is_ready = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
    handle = is_ready ? curl_easy_init() : nullptr;
    if (handle == nullptr) throw Trouble("network", "libcurl cannot be started");
  }
  ~Curl() { curl_easy_cleanup(handle); }

  template <typename T>
  void set(CURLoption option, T value) {
    if (curl_easy_setopt(handle, option, value) != CURLE_OK) {
      throw Trouble("network", "this libcurl lacks what gRPC needs, option " +
                                   std::to_string(static_cast<int>(option)));
    }
  }

  CURL* handle;
};

Channel::Channel(std::string address, const std::filesystem::path& authority, std::string token,
                 const std::atomic<bool>* stop)
    : curl_(std::make_unique<Curl>()),
      address_(std::move(address)),
      authority_(authority.string()),
      token_(std::move(token)),
      stop_(stop) {
  curl_->set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_2_0));
  curl_->set(CURLOPT_CAINFO, authority_.c_str());
  curl_->set(CURLOPT_CAPATH, static_cast<const char*>(nullptr));  // the system's authorities
  curl_->set(CURLOPT_SSL_VERIFYPEER, 1L);
  curl_->set(CURLOPT_SSL_VERIFYHOST, 2L);
  curl_->set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
  curl_->set(CURLOPT_PROXY, "");
  curl_->set(CURLOPT_FOLLOWLOCATION, 0L);
  curl_->set(CURLOPT_NOSIGNAL, 1L);
  curl_->set(CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
  curl_->set(CURLOPT_TCP_KEEPALIVE, 1L);
  curl_->set(CURLOPT_TCP_KEEPIDLE, kKeepaliveSeconds);
  curl_->set(CURLOPT_TCP_KEEPINTVL, kKeepaliveSeconds);
  curl_->set(CURLOPT_NOPROGRESS, 0L);
  curl_->set(CURLOPT_WRITEFUNCTION, &take_body);
  curl_->set(CURLOPT_HEADERFUNCTION, &take_header);
  curl_->set(CURLOPT_XFERINFOFUNCTION, &may_end);
}

Channel::~Channel() = default;

std::string Channel::call(const std::string& method, std::string_view request, double seconds) {
  const auto milliseconds = std::lround(seconds * 1000);
  const auto url = "https://" + address_ + "/fedhead.phones.v1.Phones/" + method;
  const auto body = framed(request);
  Headers headers;
  headers.add("content-type: application/grpc");
  headers.add("te: trailers");
  headers.add("user-agent: fedhead-phone");
  headers.add("grpc-timeout: " + std::to_string(milliseconds) + "m");
  headers.add("authorization: Bearer " + token_);
  headers.add("expect:");
  Received received;
  received.stop = stop_;
  curl_->set(CURLOPT_URL, url.c_str());
  curl_->set(CURLOPT_HTTPHEADER, headers.list());
  curl_->set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
  curl_->set(CURLOPT_POSTFIELDS, body.data());
  curl_->set(CURLOPT_TIMEOUT_MS, milliseconds);
  curl_->set(CURLOPT_WRITEDATA, &received);
  curl_->set(CURLOPT_HEADERDATA, &received);
  curl_->set(CURLOPT_XFERINFODATA, &received);
  const auto error = curl_easy_perform(curl_->handle);
  if (received.is_stopped()) throw Stopped();
  if (error != CURLE_OK) throw CallError(code_of(error), curl_easy_strerror(error));
  long http = 0;
  curl_easy_getinfo(curl_->handle, CURLINFO_RESPONSE_CODE, &http);
  check_status(received, http);
  return std::string(unframed(received.body));
}

}  // namespace fedhead
