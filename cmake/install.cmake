# The library megalodon: the objects of all layers in one archive, so that an outside project links one target and sees
# include/megalodon alone. It is built with everything else and installed as a CMake package together with the program.
include(CMakePackageConfigHelpers)

get_property(layers GLOBAL PROPERTY MEGALODON_LAYERS)
set(objects "")
foreach(layer IN LISTS layers)
  list(APPEND objects $<TARGET_OBJECTS:${layer}>)
endforeach()
add_library(megalodon STATIC ${objects})
set_target_properties(megalodon PROPERTIES LINKER_LANGUAGE CXX)
target_include_directories(megalodon PUBLIC
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(megalodon PUBLIC cxx_std_20)
# What the objects need at link time; package-config.cmake.in finds the same again where the library is used.
target_link_libraries(megalodon PRIVATE Threads::Threads OpenMP::OpenMP_CXX DNNL::dnnl tomlplusplus::tomlplusplus
                      PkgConfig::sentencepiece sentencepiece_train PkgConfig::icu PkgConfig::simdjson PkgConfig::xxhash
                      PkgConfig::zlib PkgConfig::zstd PkgConfig::highway
                      ${MEGALODON_CUDA_LIBRARIES})

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/megalodon)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/package-config.cmake.in
  ${PROJECT_BINARY_DIR}/megalodon-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/megalodon-config-version.cmake COMPATIBILITY SameMinorVersion)

install(TARGETS megalodon EXPORT megalodon-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT megalodon-targets NAMESPACE megalodon:: DESTINATION ${package_dir})
install(FILES ${PROJECT_BINARY_DIR}/megalodon-config.cmake ${PROJECT_BINARY_DIR}/megalodon-config-version.cmake
        DESTINATION ${package_dir})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/megalodon DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
