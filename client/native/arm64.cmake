# For a 64-bit ARM with Debian's g++-aarch64-linux-gnu. ARM64_ROOT is a folder into which Debian's
# arm64 packages were unpacked: libcurl4-openssl-dev, libprotobuf-dev, libssl-dev and what they need.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ARM64_ROOT)
set(CMAKE_FIND_ROOT_PATH ${ARM64_ROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(ARM64_LIBRARIES ${ARM64_ROOT}/usr/lib/aarch64-linux-gnu)
# Where libraries are that libraries need; libc is the compiler's own.
set(CMAKE_EXE_LINKER_FLAGS_INIT
    "-Wl,-rpath-link,${ARM64_LIBRARIES} -Wl,--allow-shlib-undefined")
