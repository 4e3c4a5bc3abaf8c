// Finished models, which the gateway serves beside the rounds: the newest one, whole, or the one
// before.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "gateway.h"
#include "settings.h"
#include "trainer.h"
#include "trust.h"

namespace fedhead {

// A model that an app may load.
struct ModelFile {
  std::filesystem::path path;  // its card is beside it: card.json
  std::uint64_t version;
  bool is_new;                 // another file than before the call
};

// Whether a call that failed so may succeed later, with nobody's help.
bool may_succeed_later(const CallError& error);

// Models lie in STATE/models/NAME/VERSION/, with .sums, which tells what is damaged from what was
// published anew; STATE/models/NAME/current says which version is in use. Processes may share the
// folder with each other and with a Phone.
class Models {
 public:
  Models(const Settings& settings, Gateway& gateway);

  // Brings the newest version of a model to the phone, unless it is there, whole. A kill at any
  // moment leaves the old one or the new one in use, and what was fetched; the one before the one
  // in use is kept, too. Throws CallError as the gateway, and Trouble: "no-model" if nothing is
  // published, "busy" if another process updates this model, "unsigned-model", "impossible-model"
  // or "damaged-blob" if what the gateway offers is refused, "damaged-model" if what is in use is
  // damaged and only an older version is offered, "name", "disk". Asks goes_on before each part.
  ModelFile update(const std::string& name, const GoesOn& goes_on);

 private:
  pb::Model newest(const std::string& name);
  // What was signed, if there are keys to trust.
  std::optional<Statement> checked(const pb::Model& model) const;

  std::filesystem::path folder_;
  Trust trust_;
  Gateway& gateway_;
};

}  // namespace fedhead
