# fedhead-phone, included by the file above.
find_package(CURL REQUIRED)
find_package(OpenSSL REQUIRED)
find_program(PROTOC protoc REQUIRED)
find_path(PROTOBUF_HEADERS google/protobuf/message_lite.h REQUIRED)
# The static one: libtorch has another protobuf in it, of whose symbols ours must use none.
find_library(PROTOBUF_LITE NAMES libprotobuf-lite.a protobuf-lite REQUIRED)
find_package(Threads REQUIRED)

get_filename_component(FEDHEAD_ROOT ${CMAKE_CURRENT_SOURCE_DIR}/../.. ABSOLUTE)
set(PROTO_FOLDER ${FEDHEAD_ROOT}/common/phones)
set(GENERATED ${CMAKE_CURRENT_BINARY_DIR}/generated)
file(MAKE_DIRECTORY ${GENERATED})
add_custom_command(
  OUTPUT ${GENERATED}/phones.pb.cc ${GENERATED}/phones.pb.h
  COMMAND ${PROTOC} --cpp_out=lite:${GENERATED} -I ${PROTO_FOLDER} phones.proto
  DEPENDS ${PROTO_FOLDER}/phones.proto)

file(STRINGS ${FEDHEAD_ROOT}/pyproject.toml VERSION_LINE REGEX "^version = ")
string(REGEX REPLACE "^version = \"(.*)\"$" "\\1" FEDHEAD_VERSION "${VERSION_LINE}")

# Everything but main and the runtimes: what an app links, and what the tests probe.
add_library(fedhead-phone-core STATIC
            codecs.cpp safetensors.cpp phone/allow.cpp phone/blobs.cpp phone/card.cpp
            phone/channel.cpp phone/files.cpp phone/gateway.cpp phone/images.cpp phone/kept.cpp
            phone/models.cpp phone/phone.cpp phone/phone_data.cpp phone/phone_tasks.cpp
            phone/settings.cpp phone/split.cpp phone/trainer.cpp phone/trust.cpp phone/work.cpp
            ${GENERATED}/phones.pb.cc)
set_source_files_properties(${GENERATED}/phones.pb.cc PROPERTIES COMPILE_OPTIONS -w)
target_compile_definitions(fedhead-phone-core PUBLIC FEDHEAD_VERSION="${FEDHEAD_VERSION}")
target_compile_options(fedhead-phone-core PUBLIC -fvisibility=hidden -fvisibility-inlines-hidden)
target_include_directories(fedhead-phone-core PUBLIC phone)
target_include_directories(fedhead-phone-core SYSTEM PUBLIC ${GENERATED} ${PROTOBUF_HEADERS})
target_link_libraries(fedhead-phone-core PUBLIC ${PROTOBUF_LITE} CURL::libcurl OpenSSL::Crypto
                      Threads::Threads)

add_executable(fedhead-phone phone/main.cpp phone/runtimes.cpp)
target_link_libraries(fedhead-phone PRIVATE fedhead-phone-core)
target_link_options(fedhead-phone PRIVATE -Wl,--exclude-libs,ALL)

if(FEDHEAD_EXECUTORCH)
  find_path(EXECUTORCH_HEADERS executorch/extension/module/module.h
            HINTS ${EXECUTORCH_ROOT}/include REQUIRED NO_CMAKE_FIND_ROOT_PATH)
  target_sources(fedhead-phone PRIVATE phone/executorch.cpp)
  target_compile_definitions(fedhead-phone PRIVATE FEDHEAD_EXECUTORCH
                             C10_USING_CUSTOM_GENERATED_MACROS)
  target_include_directories(fedhead-phone SYSTEM PRIVATE
                             ${EXECUTORCH_HEADERS}
                             ${EXECUTORCH_HEADERS}/executorch/runtime/core/portable_type/c10)
  # Kernels and backends say that they are there when they are loaded: no symbol asks for them.
  target_link_options(fedhead-phone PRIVATE -L${EXECUTORCH_ROOT}/lib -Wl,--no-as-needed)
  target_link_libraries(fedhead-phone PRIVATE executorch executorch_kernels_optimized
                        executorch_kernels_quantized executorch_backend_xnnpack
                        executorch_threadpool)
  set_property(TARGET fedhead-phone APPEND PROPERTY BUILD_RPATH ${EXECUTORCH_ROOT}/lib)
endif()

if(FEDHEAD_LITE)
  target_sources(fedhead-phone PRIVATE phone/lite.cpp device.cpp tensors.cpp)
  target_compile_definitions(fedhead-phone PRIVATE FEDHEAD_LITE)
  target_include_directories(fedhead-phone SYSTEM PRIVATE ${TORCH_HEADERS})
  target_link_libraries(fedhead-phone PRIVATE ${TORCH_LIBRARY} ${C10_LIBRARY})
endif()
