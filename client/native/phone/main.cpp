// fedhead-phone FOLDER [--once | --model NAME]: takes part in rounds, or updates a model.
#include <atomic>
#include <chrono>
#include <csignal>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include "channel.h"
#include "gateway.h"
#include "models.h"
#include "phone.h"
#include "settings.h"
#include "trainer.h"
#include "trouble.h"

namespace {

constexpr const char* kUsage =
    "usage: fedhead-phone FOLDER [--once | --model NAME]\n"
    "FOLDER holds phone.toml, phone.token and ca.crt: `fedhead deploy --phone NAME` makes it.\n"
    "With --once it ends as soon as there is nothing to do, for a job of the system's to start it\n"
    "again: with 0, or with 75 if something failed that another try may mend.\n"
    "With --model it takes part in nothing: it brings the newest version of a finished model, and\n"
    "prints the path of the file to load, its version, and new or unchanged, with tabs between. It\n"
    "ends with 0, with 75 if another try later may succeed, or with 1.\n";

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

struct Arguments {
  std::string folder;
  bool once = false;
  std::optional<std::string> model;
};

// Nothing if they are none.
std::optional<Arguments> parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--once") {
      arguments.once = true;
    } else if (argument == "--model" && i + 1 < argc) {
      arguments.model = argv[++i];
    } else if (argument.starts_with('-') || !arguments.folder.empty()) {
      return std::nullopt;
    } else {
      arguments.folder = argument;
    }
  }
  if (arguments.folder.empty() || (arguments.once && arguments.model)) return std::nullopt;
  return arguments;
}

int say(const std::exception& error, int status) {
  std::cerr << "fedhead-phone: " << fedhead::one_line(error.what())
            << (status == kTryLater ? "; try again later\n" : "\n");
  return status;
}

int update(const std::string& folder, const std::string& name) {
  const auto settings = fedhead::read_settings(folder);
  fedhead::Channel channel(settings.gateway, settings.authority, settings.token, &stop);
  fedhead::Gateway gateway(channel);
  try {
    const auto model = fedhead::Models(settings, gateway).update(name, [] {
      if (stop) throw fedhead::Stopped();
    });
    std::cout << model.path.string() << '\t' << model.version << '\t'
              << (model.is_new ? "new" : "unchanged") << std::endl;
    return 0;
  } catch (const fedhead::CallError& error) {
    return say(error, fedhead::may_succeed_later(error) ? kTryLater : 1);
  } catch (const fedhead::Trouble& trouble) {
    return say(trouble, trouble.word() == "busy" ? kTryLater : 1);
  } catch (const fedhead::Stopped& stopped) {
    return say(stopped, kTryLater);
  }
}

int live(const std::string& folder, bool once) {
  if (fedhead::runtimes().empty()) {
    throw std::runtime_error("it was built without a runtime, and can only do --model NAME");
  }
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
  const auto arguments = parse(argc, argv);
  if (!arguments) {
    std::cerr << kUsage;
    return 2;
  }
  struct sigaction action {};
  action.sa_handler = ask_to_stop;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  try {
    const auto& [folder, once, model] = *arguments;
    return model ? update(folder, *model) : live(folder, once);
  } catch (const fedhead::Stopped&) {
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "fedhead-phone: " << error.what() << "\n";
    return 1;
  }
}
