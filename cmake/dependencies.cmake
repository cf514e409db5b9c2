find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)  # for omp_set_num_threads alone: oneDNN must not start threads of its own
find_package(dnnl REQUIRED CONFIG)
find_package(PkgConfig REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED CONFIG)
find_package(tomlplusplus 3 REQUIRED CONFIG)
find_package(CLI11 2 REQUIRED CONFIG)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)
find_library(SENTENCEPIECE_TRAIN sentencepiece_train REQUIRED)  # the trainer is a library of its own in the same package
pkg_check_modules(icu REQUIRED IMPORTED_TARGET icu-i18n icu-uc)  # classes of characters, normal forms, regular expressions
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(cairo REQUIRED IMPORTED_TARGET cairo)  # the pictures of `plot`
pkg_check_modules(simdjson REQUIRED IMPORTED_TARGET simdjson)
pkg_check_modules(zlib REQUIRED IMPORTED_TARGET zlib)
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(highway REQUIRED IMPORTED_TARGET libhwy)

# Highway: SSE4 (our -march, hence no scalar fallback; we use neither AES nor PCLMUL, which Highway would otherwise ask of it),
# AVX2 and AVX3. What is left out lies between them and would only lengthen the build.
add_library(hwy_targets INTERFACE)
target_link_libraries(hwy_targets INTERFACE PkgConfig::highway)
target_compile_definitions(hwy_targets INTERFACE "HWY_DISABLED_TARGETS=(HWY_SSSE3|HWY_AVX3_DL)"
                           HWY_DISABLE_PCLMUL_AES)
add_library(hwy::hwy ALIAS hwy_targets)

set(MEGALODON_CUDA_LIBRARIES "")
if(MEGALODON_CUDA)
  find_package(CUDAToolkit 12.1 REQUIRED)  # kernels with more than 4 KiB of parameters
  set(MEGALODON_CUDA_LIBRARIES CUDA::cudart_static CUDA::cublasLt)
endif()

if(MEGALODON_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()
