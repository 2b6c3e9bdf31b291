# SPDX-License-Identifier: Apache-2.0
# The CUDA backend: builds csrc/cuda/ where cuda_decision.cmake says so. The runtime is linked
# statically and loads the driver at the first CUDA call, so importing needs neither.

include(cmake/cuda_decision.cmake)
set(LAMPO_CUDA_OBJECTS)
set(LAMPO_CUDA_LIBRARIES)

if(LAMPO_CUDA_ENABLED)
  # An architecture-specific image ("90a") runs on that architecture alone: its PTX would be waste.
  set(CMAKE_CUDA_ARCHITECTURES ${LAMPO_CUDA_TARGETS})
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
