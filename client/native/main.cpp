// One phone's local training: examples and the global head in, the head's delta out.
#include <ATen/Parallel.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "codecs.h"
#include "device.h"
#include "safetensors.h"
#include "seeding.h"
#include "tensors.h"

namespace {

constexpr const char* kUsage =
    "usage: fedhead-device MODEL.ptl DATA --out UPDATE.safetensors [--head HEAD.safetensors]\n"
    "         [--lr 0.05] [--epochs 5] [--batch-size 10] [--seed 0] [--round 1] [--client 0]\n"
    "         [--codec none|int8|drive] [--features FILE] [--clip CLIP [--unit-norm 0]]\n"
    "         [--changes CHANGES.safetensors --keep-head FILE]\n"
    "DATA is a folder LABEL/*.rgb of raw uint8 images (3 planes, square), or a safetensors\n"
    "file with features and labels, as --features writes it. Seed, round and client are those\n"
    "of the server's order. CHANGES holds what rounds have changed of the head: the order's\n"
    "payloads, named by their rounds; its codec stands in the metadata. Clip and norm are those\n"
    "of a private round's order: the update is then clipped and says nothing of the examples.\n";

struct Options {
  std::vector<std::string> positional;
  std::map<std::string, std::string> named{
      {"--out", ""},      {"--head", ""},   {"--features", ""},    {"--changes", ""},
      {"--lr", "0.05"},   {"--epochs", "5"}, {"--batch-size", "10"}, {"--keep-head", ""},
      {"--seed", "0"},    {"--round", "1"}, {"--client", "0"},     {"--codec", "none"},
      {"--clip", ""},     {"--unit-norm", "0"}};
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--", 0) != 0) {
      options.positional.push_back(argument);
      continue;
    }
    const auto found = options.named.find(argument);
    if (found == options.named.end()) throw std::invalid_argument("no such option: " + argument);
    if (++i == argc) throw std::invalid_argument(argument + " needs a value");
    found->second = argv[i];
  }
  if (options.positional.size() != 2) throw std::invalid_argument("expected MODEL.ptl and DATA");
  if (options.named["--out"].empty()) throw std::invalid_argument("--out is missing");
  const bool is_private = !options.named["--clip"].empty();
  if (!is_private && options.named["--unit-norm"] != "0") {
    throw std::invalid_argument("--unit-norm needs --clip");
  }
  if (is_private && options.named["--codec"] != "none") {
    throw std::invalid_argument("--clip needs --codec none");
  }
  if (!options.named["--changes"].empty()) {
    for (const char* needed : {"--head", "--keep-head"}) {
      if (options.named[needed].empty()) {
        throw std::invalid_argument(std::string("--changes needs ") + needed);
      }
    }
  }
  return options;
}

template <typename T>
T number(const std::string& text, const std::string& name) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw std::invalid_argument(name + " is " + text + ", expected a number");
  }
  return value;
}

template <typename T>
T option(const Options& options, const std::string& name) {
  return number<T>(options.named.at(name), name);
}

// Nine digits are enough to distinguish all float32 values.
std::string digits(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

fedhead::Rows rows_of(const at::Tensor& matrix) {
  const auto dense = matrix.contiguous();
  const auto* data = static_cast<const float*>(dense.data_ptr());
  return {{data, data + dense.numel()},
          static_cast<std::size_t>(dense.size(0)),
          static_cast<std::size_t>(dense.size(1))};
}

// A copy: what it is made of may go.
template <typename T>
at::Tensor copied(const std::vector<T>& values, at::IntArrayRef shape, at::ScalarType dtype) {
  auto tensor = at::empty(shape, dtype);
  std::copy(values.begin(), values.end(), static_cast<T*>(tensor.data_ptr()));
  return tensor;
}

// The head after the rounds of a file of changes.
at::Tensor changed(const at::Tensor& matrix, const fedhead::Archive& archive, std::int64_t seed) {
  const auto named = archive.metadata.find("codec");
  if (named == archive.metadata.end()) throw std::runtime_error("names no codec");
  const auto& codec = fedhead::find_codec(named->second);
  std::map<std::int64_t, const std::string*> rounds;  // by number: as text, 10 comes before 9
  for (const auto& [name, payload] : archive.arrays) {
    rounds[number<std::int64_t>(name, "the round of a change")] = &payload.bytes;
  }
  auto rows = rows_of(matrix);
  for (const auto& [round, payload] : rounds) {
    const auto* data = reinterpret_cast<const std::uint8_t*>(payload->data());
    try {
      rows = fedhead::add_change(std::move(rows), {data, payload->size()}, codec, seed, round);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error("change " + std::to_string(round) + " " + error.what());
    }
  }
  return copied(rows.values, matrix.sizes(), at::kFloat);
}

// Of a matrix (K, d + 1), bias last; keeps it for the changes of later rounds.
void set_changed(fedhead::Device& device, const at::Tensor& head, const std::string& fingerprint,
                 const std::string& kept) {
  const auto last = head.size(1) - 1;
  const auto weight = head.slice(1, 0, last).contiguous(), bias = head.select(1, last).contiguous();
  device.set_head(weight, bias, fingerprint);
  fedhead::write_safetensors(
      kept, {{{"weight", fedhead::array_of(weight)}, {"bias", fedhead::array_of(bias)}},
             {{"fingerprint", fingerprint}}});
}

void start(fedhead::Device& device, const Options& options, std::int64_t seed) {
  const auto& path = options.named.at("--head");
  if (path.empty()) return;
  const auto archive = fedhead::read_safetensors(path);
  const auto named = archive.metadata.find("fingerprint");
  if (named == archive.metadata.end()) throw std::runtime_error(path + ": names no fingerprint");
  const auto weight = fedhead::tensor_of(archive, "weight");
  const auto bias = fedhead::tensor_of(archive, "bias");
  device.set_head(weight, bias, named->second);  // which checks them
  const auto& changes = options.named.at("--changes");
  if (changes.empty()) return;
  const auto file = fedhead::read_safetensors(changes);
  at::Tensor head;
  try {
    head = changed(at::cat({weight, bias.unsqueeze(1)}, 1), file, seed);
  } catch (const std::exception& error) {
    throw std::runtime_error(changes + ": " + error.what());
  }
  set_changed(device, head, named->second, options.named.at("--keep-head"));
}

// What the server decodes: with the codec "none" the delta itself.
at::Tensor encoded(const at::Tensor& delta, const fedhead::Codec& codec, std::uint64_t state) {
  if (codec.name == std::string("none")) return delta;
  const auto payload = codec.encode(rows_of(delta), state);
  return copied(payload, {static_cast<std::int64_t>(payload.size())}, at::kByte);
}

struct Steps {
  double lr;
  std::int64_t epochs, batch_size, seed;  // the seed of the order of examples
};

void train_private(fedhead::Device& device, const fedhead::LabelledFeatures& examples,
                   const Steps& steps, const Options& options) {
  const auto fields = device.private_update(examples, steps.lr, steps.epochs, steps.batch_size,
                                            steps.seed, option<double>(options, "--unit-norm"),
                                            option<double>(options, "--clip"));
  fedhead::write_safetensors(
      options.named.at("--out"),
      {{{"clipped_delta", fedhead::array_of(fields.first)},
        {"within_clip", fedhead::array_of(fields.second)}},
       {{"fingerprint", device.fingerprint()},
        {"codec", "none"},
        {"num-examples", "1"},
        {"loss-before", "0"},
        {"loss-after", "0"}}});
  std::cout << "the clipped update, without number of examples and losses\n";
}

void train(fedhead::Device& device, const fedhead::LabelledFeatures& examples, const Steps& steps,
           const fedhead::Codec& codec, std::uint64_t codec_state, const Options& options) {
  const double before = device.loss(examples);
  const auto losses = device.train(examples, steps.lr, steps.epochs, steps.batch_size, steps.seed);
  for (std::int64_t epoch = 0; epoch < steps.epochs; ++epoch) {
    std::cout << "epoch " << epoch + 1 << "  loss " << losses[epoch].item<float>() << "\n";
  }
  const double after = device.loss(examples);
  const auto count = examples.labels.size(0);
  const auto update = encoded(device.delta(), codec, codec_state);
  fedhead::write_safetensors(options.named.at("--out"),
                             {{{"delta", fedhead::array_of(update)}},
                              {{"fingerprint", device.fingerprint()},
                               {"codec", codec.name},
                               {"num-examples", std::to_string(count)},
                               {"loss-before", digits(before)},
                               {"loss-after", digits(after)}}});
  std::cout << count << " examples, loss " << before << " -> " << after << "\n";
}

void run(const Options& options) {
  const auto seed = option<std::int64_t>(options, "--seed");
  const auto round = option<std::int64_t>(options, "--round");
  const auto client = option<std::int64_t>(options, "--client");
  const auto order = fedhead::stream_state(seed, fedhead::Purpose::kBatchOrder, {round, client});
  const Steps steps{option<double>(options, "--lr"), option<std::int64_t>(options, "--epochs"),
                    option<std::int64_t>(options, "--batch-size"),
                    static_cast<std::int64_t>(order)};
  const auto& codec = fedhead::find_codec(options.named.at("--codec"));
  at::set_num_threads(1);  // a step is too small to share

  fedhead::Device device(options.positional[0]);
  start(device, options, seed);
  const auto examples = device.examples(options.positional[1]);
  if (const auto& path = options.named.at("--features"); !path.empty()) {
    fedhead::write_safetensors(
        path, {{{"features", fedhead::array_of(examples.features)},
                {"labels", fedhead::array_of(examples.labels)}},
               {{"fingerprint", device.fingerprint()}}});
  }
  if (!options.named.at("--clip").empty()) return train_private(device, examples, steps, options);
  // The delta is the first and only field of such a plan that this program can serve.
  const auto state = fedhead::stream_state(seed, fedhead::Purpose::kUplink, {round, client, 0});
  train(device, examples, steps, codec, state, options);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse(argc, argv));
  } catch (const std::invalid_argument& error) {
    std::cerr << "fedhead-device: " << error.what() << "\n" << kUsage;
    return 2;
  } catch (const c10::Error& error) {
    std::cerr << "fedhead-device: " << fedhead::first_line(error) << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "fedhead-device: " << error.what() << "\n";
    return 1;
  }
}
