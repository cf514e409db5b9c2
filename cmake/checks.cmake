# Checks that are not C++ tests, each an ordinary test of ctest named checks.*. They say nothing new about a sanitizer build.
if(MEGALODON_SANITIZE)
  return()
endif()
include(cmake/headers.cmake)
find_package(Python3 REQUIRED COMPONENTS Interpreter)
include(ProcessorCount)
ProcessorCount(processors)

# megalodon_check(NAME COMMAND...)
function(megalodon_check name)
  add_test(NAME checks.${name} COMMAND ${ARGN} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(checks.${name} PROPERTIES LABELS check TIMEOUT 1800)
endfunction()

megalodon_check(layers ${Python3_EXECUTABLE} tools/check_layers.py)
megalodon_check(layers_finds_faults ${Python3_EXECUTABLE} tests/tools/check_layers_test.py)
megalodon_check(headers_alone ${CMAKE_COMMAND} --build ${PROJECT_BINARY_DIR} --target headers_alone)
megalodon_check(package ${CMAKE_COMMAND} -DBUILD_DIR=${PROJECT_BINARY_DIR} -DCXX=${CMAKE_CXX_COMPILER}
                -DVERSION=${PROJECT_VERSION} -P tests/package/check.cmake)
megalodon_check(format ${Python3_EXECUTABLE} tools/check_format.py)
megalodon_check(clang_tidy ${Python3_EXECUTABLE} tools/run_clang_tidy.py ${PROJECT_BINARY_DIR})
megalodon_check(commands ${Python3_EXECUTABLE} tests/apps/cli_test.py $<TARGET_FILE:megalodon_cli>)
megalodon_check(kill ${Python3_EXECUTABLE} tests/kill/kill_test.py $<TARGET_FILE:megalodon_cli> --kills 8)
megalodon_check(kill_prepare ${Python3_EXECUTABLE} tests/kill/prepare_test.py $<TARGET_FILE:megalodon_cli> --kills 10)
megalodon_check(train_command ${Python3_EXECUTABLE} tests/kill/damage_test.py $<TARGET_FILE:megalodon_cli>)
megalodon_check(faults ${Python3_EXECUTABLE} tests/kill/fault_test.py $<TARGET_FILE:megalodon_cli> $<TARGET_FILE:faults>)
# scripts/setup test puts the package there; without it the test says that it is skipped.
set(python_with_packages ${PROJECT_SOURCE_DIR}/build/python/bin/python3)
if(NOT EXISTS ${python_with_packages})
  set(python_with_packages ${Python3_EXECUTABLE})
endif()
megalodon_check(tensorboard ${python_with_packages} tests/apps/tensorboard_test.py $<TARGET_FILE:megalodon_cli>)
file(GLOB tokenizers ${PROJECT_SOURCE_DIR}/tests/golden/tokenizers/*.json)
megalodon_check(tokenizers ${python_with_packages} tests/io/compare_tokenizers.py $<TARGET_FILE:megalodon_cli> ${tokenizers}
                ${PROJECT_SOURCE_DIR}/../shared/data/tokenizers/megalodon-hf.tokenizer.json --texts 500)
set_tests_properties(checks.tensorboard checks.tokenizers PROPERTIES SKIP_RETURN_CODE 77)
# The longest first, and those that use every processor not beside others.
set_tests_properties(checks.clang_tidy checks.headers_alone PROPERTIES COST 1000 PROCESSORS ${processors})
