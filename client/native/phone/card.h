// What a phone reads of a model's card.
#pragma once

#include <string>
#include <string_view>

namespace fedhead {

// The text "fingerprint" of a JSON object. Throws std::runtime_error if there is none. Values
// beside it are passed over, not checked, and need no memory, however deep they are.
std::string fingerprint_in(std::string_view card);

}  // namespace fedhead
