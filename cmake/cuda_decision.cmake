# SPDX-License-Identifier: Apache-2.0
# Whether the CUDA backend is built, for which GPUs and with which compiler.
#
#   sets LAMPO_CUDA_ENABLED, LAMPO_CUDA_TARGETS (architectures), LAMPO_CUDA_WHY (one line)
#
# AUTO builds it where a GPU is visible and nvcc works; no GPU, or a missing, too old or broken nvcc,
# turns it off, with the reason. ON needs no GPU, and makes of what is wrong with nvcc an error.
# Architectures: LAMPO_CUDA_ARCHITECTURES; where that is empty, with AUTO those of the visible GPUs,
# with ON the same everywhere. Runs as a script too: cmake -DLAMPO_CUDA=AUTO -P <this file>

set(LAMPO_CUDA_MINIMUM 12.4)
set(LAMPO_CUDA_EVERYWHERE 80 90a)  # what ON builds for, unless told: every supported GPU
set(LAMPO_CUDA_ENABLED OFF)

# Whether a GPU is visible that the kernels run on, and the architectures of those that are, as far
# as the driver tells: "90a" for compute capability 9.0, whose tensor cores need it, else "86" for
# 8.6 and so on.
function(lampo_find_gpus visible architectures)
  set(found)
  set(known FALSE)
  find_program(LAMPO_NVIDIA_SMI nvidia-smi DOC "Tells which GPUs are visible")
  if(LAMPO_NVIDIA_SMI)
    execute_process(COMMAND "${LAMPO_NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE text ERROR_QUIET RESULT_VARIABLE status)
    if(status EQUAL 0)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]+" found "${text}")
      list(TRANSFORM found REPLACE "\\." "")
      list(FILTER found INCLUDE REGEX "^([89]|[1-9][0-9])[0-9]$")
      list(TRANSFORM found REPLACE "^90$" "90a")
      list(REMOVE_DUPLICATES found)
      set(known TRUE)
    endif()
  endif()
  file(GLOB devices "/proc/driver/nvidia/gpus/*")
  if(found OR (devices AND NOT known))
    set(${visible} TRUE PARENT_SCOPE)
  else()
    set(${visible} FALSE PARENT_SCOPE)
  endif()
  set(${architectures} ${found} PARENT_SCOPE)
endfunction()

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
# all these architectures. Cached, so that only the first configuration pays for it.
function(lampo_probe_nvcc architectures result)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${result} "no CUDA compiler was found: put nvcc on PATH, or set CUDACXX or CUDA_HOME" PARENT_SCOPE)
    return()
  endif()
  set(key "${CMAKE_CUDA_COMPILER}|${CMAKE_CUDA_HOST_COMPILER}|${architectures}")
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
  foreach(architecture IN LISTS architectures)
    string(REGEX REPLACE "-.*" "" number "${architecture}")
    list(APPEND codes "-gencode=arch=compute_${number},code=sm_${number}")
  endforeach()
  set(directory "${CMAKE_CURRENT_BINARY_DIR}/cuda_probe")
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
compile a test program for ${architectures}: ${line} (CUDAHOSTCXX chooses another host \
compiler, LAMPO_CUDA_ARCHITECTURES other GPUs)" PARENT_SCOPE)
    return()
  endif()
  set(LAMPO_CUDA_PROBED "${key}" CACHE INTERNAL "What the last successful test of nvcc tested")
  set(${result} "" PARENT_SCOPE)
endfunction()

if(NOT LAMPO_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "LAMPO_CUDA must be AUTO, ON or OFF, not '${LAMPO_CUDA}'")
endif()
set(LAMPO_CUDA_TARGETS ${LAMPO_CUDA_ARCHITECTURES})
if(LAMPO_CUDA STREQUAL "AUTO")
  lampo_find_gpus(gpu_is_visible gpu_architectures)
  if(NOT LAMPO_CUDA_TARGETS)
    set(LAMPO_CUDA_TARGETS ${gpu_architectures})
  endif()
endif()
if(NOT LAMPO_CUDA_TARGETS)
  set(LAMPO_CUDA_TARGETS ${LAMPO_CUDA_EVERYWHERE})
endif()

if(LAMPO_CUDA STREQUAL "OFF")
  set(LAMPO_CUDA_WHY "LAMPO_CUDA=OFF")
elseif(LAMPO_CUDA STREQUAL "AUTO" AND NOT gpu_is_visible)
  set(LAMPO_CUDA_WHY "LAMPO_CUDA=AUTO and no GPU of compute capability 8.0 or newer is visible \
(LAMPO_CUDA=ON builds it all the same)")
else()
  lampo_find_nvcc()
  lampo_probe_nvcc("${LAMPO_CUDA_TARGETS}" obstacle)
  if(obstacle AND LAMPO_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LAMPO_CUDA=ON, but ${obstacle}")
  elseif(obstacle)
    set(LAMPO_CUDA_WHY "LAMPO_CUDA=AUTO and ${obstacle}")
  else()
    set(LAMPO_CUDA_ENABLED ON)
    list(JOIN LAMPO_CUDA_TARGETS ", " text)
    set(LAMPO_CUDA_WHY "LAMPO_CUDA=${LAMPO_CUDA} and ${CMAKE_CUDA_COMPILER} works for ${text}")
  endif()
endif()
message(STATUS "lampo: CUDA backend ${LAMPO_CUDA_ENABLED}: ${LAMPO_CUDA_WHY}")
