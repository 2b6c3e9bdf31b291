# SPDX-License-Identifier: Apache-2.0
# The CUDA backend: decides whether it is built, says so, and builds csrc/cuda/.
#
# AUTO builds it where nvcc can compile a program for LAMPO_CUDA_ARCHITECTURES; a missing, too old
# or broken nvcc turns it off, with the reason. ON makes that reason an error. The runtime is linked
# statically and loads the driver at the first CUDA call, so importing needs neither.

set(LAMPO_CUDA_MINIMUM 12.4)
set(LAMPO_CUDA_OBJECTS)
set(LAMPO_CUDA_LIBRARIES)
set(LAMPO_CUDA_ENABLED OFF)

# The compiler and its host compiler: what the user named (CUDACXX, CUDA_HOME, CUDAHOSTCXX), else
# nvcc on PATH and the C++ compiler of the rest of this build.
function(lampo_find_nvcc)
  if(NOT CMAKE_CUDA_COMPILER AND DEFINED ENV{CUDACXX})
    set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}" CACHE FILEPATH "CUDA compiler")
  endif()
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin
               NO_CMAKE_SYSTEM_PATH DOC "CUDA compiler")
  if(NOT CMAKE_CUDA_HOST_COMPILER)
    set(host "$ENV{CUDAHOSTCXX}")
    if(NOT host)
      set(host "${CMAKE_CXX_COMPILER}")
    endif()
    set(CMAKE_CUDA_HOST_COMPILER "${host}" CACHE FILEPATH "Host compiler of nvcc")
  endif()
endfunction()

# What is wrong with the compiler, as a clause; empty if it compiles and links a small program for
# every architecture of the list. Cached, so that only the first configuration pays for it.
function(lampo_probe_nvcc result)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${result} "no CUDA compiler was found: put nvcc on PATH, or set CUDACXX or CUDA_HOME" PARENT_SCOPE)
    return()
  endif()
  set(key "${CMAKE_CUDA_COMPILER}|${CMAKE_CUDA_HOST_COMPILER}|${LAMPO_CUDA_ARCHITECTURES}")
  if(LAMPO_CUDA_PROBED STREQUAL key)
    set(${result} "" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version OUTPUT_VARIABLE text
                  ERROR_VARIABLE text RESULT_VARIABLE status)
  if(NOT status EQUAL 0 OR NOT text MATCHES "release ([0-9]+\\.[0-9]+)")
    set(${result} "${CMAKE_CUDA_COMPILER} --version failed (${status})" PARENT_SCOPE)
    return()
  endif()
  set(version ${CMAKE_MATCH_1})
  if(version VERSION_LESS LAMPO_CUDA_MINIMUM)
    set(${result} "${CMAKE_CUDA_COMPILER} is CUDA ${version}, older than ${LAMPO_CUDA_MINIMUM}"
        PARENT_SCOPE)
    return()
  endif()

  set(codes)
  foreach(architecture IN LISTS LAMPO_CUDA_ARCHITECTURES)
    string(REGEX REPLACE "-.*" "" number "${architecture}")
    list(APPEND codes "-gencode=arch=compute_${number},code=sm_${number}")
  endforeach()
  set(directory "${PROJECT_BINARY_DIR}/cuda_probe")
  file(WRITE "${directory}/probe.cu" "
#include <type_traits>
__global__ void probe(int* out) { *out = static_cast<int>(threadIdx.x); }
int main() {
  static_assert(std::is_same_v<std::remove_cvref_t<const int&>, int>);
  probe<<<1, 1>>>(nullptr);
  return cudaGetLastError() == cudaSuccess ? 0 : 1;
}
")
  execute_process(
    COMMAND "${CMAKE_CUDA_COMPILER}" -std=c++20 -ccbin "${CMAKE_CUDA_HOST_COMPILER}" -cudart static
            ${codes} -o "${directory}/probe" "${directory}/probe.cu"
    OUTPUT_VARIABLE text ERROR_VARIABLE text RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    string(REGEX MATCH "[^\n]*([Ee]rror|fatal|cannot|not found)[^\n]*" line "${text}")
    set(${result}
        "${CMAKE_CUDA_COMPILER} (CUDA ${version}, host compiler ${CMAKE_CUDA_HOST_COMPILER}) cannot \
compile a test program for ${LAMPO_CUDA_ARCHITECTURES}: ${line} (CUDAHOSTCXX chooses another host \
compiler, LAMPO_CUDA_ARCHITECTURES other GPUs)" PARENT_SCOPE)
    return()
  endif()
  set(LAMPO_CUDA_PROBED "${key}" CACHE INTERNAL "What the last successful test of nvcc tested")
  set(${result} "" PARENT_SCOPE)
endfunction()

if(NOT LAMPO_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "LAMPO_CUDA must be AUTO, ON or OFF, not '${LAMPO_CUDA}'")
endif()
if(LAMPO_CUDA STREQUAL "OFF")
  set(LAMPO_CUDA_WHY "LAMPO_CUDA=OFF")
else()
  lampo_find_nvcc()
  lampo_probe_nvcc(obstacle)
  if(obstacle AND LAMPO_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LAMPO_CUDA=ON, but ${obstacle}")
  elseif(obstacle)
    set(LAMPO_CUDA_WHY "LAMPO_CUDA=AUTO and ${obstacle}")
  else()
    set(LAMPO_CUDA_ENABLED ON)
    set(LAMPO_CUDA_WHY "LAMPO_CUDA=${LAMPO_CUDA} and ${CMAKE_CUDA_COMPILER} works")
  endif()
endif()
message(STATUS "lampo: CUDA backend ${LAMPO_CUDA_ENABLED}: ${LAMPO_CUDA_WHY}")

if(LAMPO_CUDA_ENABLED)
  # An architecture-specific image ("90a") runs on that architecture alone: its PTX would be waste.
  set(CMAKE_CUDA_ARCHITECTURES ${LAMPO_CUDA_ARCHITECTURES})
  list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "^([0-9]+[af])$" "\\1-real")
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)

  # CMake 3.24 and 3.25 do not know that nvcc speaks C++20.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
  # As for C++: no contraction that the code does not ask for, so that a formula shared with the
  # CPU kernels gives the same bits.
  set(LAMPO_CUDA_FLAGS --fmad=false -Xcompiler=-Wall,-Wextra)
  if(LAMPO_WERROR)
    list(APPEND LAMPO_CUDA_FLAGS --Werror=all-warnings)
  endif()

  file(GLOB LAMPO_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*/*.cu csrc/cuda/*/*.cpp)
  add_library(lampo_cuda OBJECT ${LAMPO_CUDA_SOURCES})
  target_include_directories(lampo_cuda PRIVATE csrc ${PROJECT_BINARY_DIR}/generated
                                                ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_options(lampo_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${LAMPO_CUDA_FLAGS}>
                                            $<$<COMPILE_LANGUAGE:CXX>:${LAMPO_CXX_FLAGS}>)
  set(LAMPO_CUDA_OBJECTS $<TARGET_OBJECTS:lampo_cuda>)
  set(LAMPO_CUDA_LIBRARIES CUDA::cudart_static)
endif()

# What cuda_info() reports of this build.
string(REPLACE "\\" "\\\\" LAMPO_CUDA_WHY_TEXT "${LAMPO_CUDA_WHY}")
string(REPLACE "\"" "\\\"" LAMPO_CUDA_WHY_TEXT "${LAMPO_CUDA_WHY_TEXT}")
set(LAMPO_CUDA_ARCHITECTURES_TEXT)
if(LAMPO_CUDA_ENABLED)
  set(LAMPO_CUDA_ARCHITECTURES_TEXT "${CMAKE_CUDA_ARCHITECTURES}")
endif()
configure_file(cmake/build_info.h.in generated/build_info.h @ONLY)
