// fedhead-phone FOLDER [--once]: a phone that takes part in rounds.
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <iostream>
#include <string>
#include <thread>

#include "phone.h"
#include "trouble.h"

namespace {

constexpr const char* kUsage =
    "usage: fedhead-phone FOLDER [--once]\n"
    "FOLDER holds phone.toml, phone.token and ca.crt: `fedhead deploy --phone NAME` makes it.\n"
    "With --once it ends as soon as there is nothing to do, for a job of the system's to start it\n"
    "again: with 0, or with 75 if something failed that another try may mend.\n";

constexpr std::uint32_t kWaitSeconds = 25;
constexpr int kTryLater = 75;  // EX_TEMPFAIL

std::atomic<bool> stop{false};

void ask_to_stop(int) { stop = true; }

// Ends early when the process is asked to stop.
void sleep_for(double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!stop && std::chrono::steady_clock::now() < end) {
    const std::chrono::duration<double> left = end - std::chrono::steady_clock::now();
    std::this_thread::sleep_for(std::min<std::chrono::duration<double>>(
        left, std::chrono::milliseconds(100)));
  }
}

int live(const std::string& folder, bool once) {
  // No call is held where nobody would wait for it.
  fedhead::Phone phone(fedhead::read_settings(folder), once ? 0 : kWaitSeconds, &stop);
  while (!stop) {
    const double pause = phone.turn();
    if (once && pause > 0) return phone.is_well() ? 0 : kTryLater;
    sleep_for(pause);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string folder;
  bool once = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--once") == 0) {
      once = true;
    } else if (argv[i][0] == '-' || !folder.empty()) {
      std::cerr << kUsage;
      return 2;
    } else {
      folder = argv[i];
    }
  }
  if (folder.empty()) {
    std::cerr << kUsage;
    return 2;
  }
  struct sigaction action {};
  action.sa_handler = ask_to_stop;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return live(folder, once);
  } catch (const fedhead::Stopped&) {
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "fedhead-phone: " << error.what() << "\n";
    return 1;
  }
}
