# Installs the build into a folder of its own, builds the project beside this file against it, and runs that.
# cmake -DBUILD_DIR=... -DCXX=... -DVERSION=... -P check.cmake
set(prefix ${BUILD_DIR}/package/prefix)
set(outside ${BUILD_DIR}/package/build)
file(REMOVE_RECURSE ${prefix} ${outside})

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${prefix})
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${outside} -G Ninja -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_PREFIX_PATH=${prefix} -DEXPECTED_VERSION=${VERSION})
run(${CMAKE_COMMAND} --build ${outside})
run(${outside}/outside)
run(${prefix}/bin/megalodon init ${CMAKE_CURRENT_LIST_DIR}/config.json --seed 1 --out ${outside}/model)
run(${outside}/generate ${outside}/model "It was" ${CMAKE_CURRENT_LIST_DIR}/main.cpp)
run(${prefix}/bin/megalodon --version)

# Only the API is installed.
file(GLOB_RECURSE headers RELATIVE ${prefix}/include ${prefix}/include/*)
list(FILTER headers EXCLUDE REGEX "^megalodon/[a-z_0-9]+\\.h$")
if(headers)
  message(FATAL_ERROR "installed besides the API: ${headers}")
endif()
