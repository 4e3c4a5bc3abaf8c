// Arrays of files as tensors of torch, and the reverse.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "safetensors.h"

namespace fedhead {

// A copy. Throws std::runtime_error if the archive has no such array.
at::Tensor tensor_of(const Archive& archive, const std::string& name);

Array array_of(const at::Tensor& tensor);

}  // namespace fedhead
