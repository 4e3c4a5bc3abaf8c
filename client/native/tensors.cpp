#include "tensors.h"

#include <cstring>
#include <stdexcept>

namespace fedhead {
namespace {

at::ScalarType dtype_of(const std::string& name) {
  if (name == "F32") return at::kFloat;
  return name == "U8" ? at::kByte : at::kLong;  // archives hold no other
}

std::string name_of(at::ScalarType dtype) {
  if (dtype == at::kFloat) return "F32";
  if (dtype == at::kByte) return "U8";
  if (dtype == at::kLong) return "I64";
  throw std::runtime_error(std::string("cannot write tensors of ") + at::toString(dtype));
}

}  // namespace

at::Tensor tensor_of(const Archive& archive, const std::string& name) {
  const auto& array = archive.array(name);
  auto tensor = at::empty(array.shape, dtype_of(array.dtype));
  if (!array.bytes.empty()) std::memcpy(tensor.data_ptr(), array.bytes.data(), array.bytes.size());
  return tensor;
}

Array array_of(const at::Tensor& tensor) {
  const auto dense = tensor.contiguous();
  const auto* data = static_cast<const char*>(dense.data_ptr());
  return {name_of(dense.scalar_type()), dense.sizes().vec(), {data, data + dense.nbytes()}};
}

}  // namespace fedhead
