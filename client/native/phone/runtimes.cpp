#include "trainer.h"

namespace fedhead {

#ifdef FEDHEAD_EXECUTORCH
std::unique_ptr<Trainer> load_executorch(const std::filesystem::path& file);
#endif
#ifdef FEDHEAD_LITE
std::unique_ptr<Trainer> load_lite(const std::filesystem::path& file);
#endif

std::vector<Runtime> runtimes() {
  std::vector<Runtime> all;
#ifdef FEDHEAD_EXECUTORCH
  all.push_back({"executorch", load_executorch});
#endif
#ifdef FEDHEAD_LITE
  all.push_back({"lite", load_lite});
#endif
  return all;
}

}  // namespace fedhead
