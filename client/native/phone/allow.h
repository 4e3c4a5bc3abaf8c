// Whether a phone's owner lets it train now.
#pragma once

#include <string>

namespace fedhead {

// Runs a shell command; true if it is empty or exits with 0 within half a minute.
bool is_allowed(const std::string& command);

}  // namespace fedhead
