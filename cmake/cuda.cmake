# SPDX-License-Identifier: Apache-2.0
# The CUDA backend: decides whether it is built, and says so.

set(LAMPO_CUDA_OBJECTS)
set(LAMPO_CUDA_LIBRARIES)
set(LAMPO_CUDA_ENABLED OFF)
set(LAMPO_CUDA_WHY "LAMPO_CUDA=OFF")

if(NOT LAMPO_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "LAMPO_CUDA must be AUTO, ON or OFF, not '${LAMPO_CUDA}'")
endif()
if(NOT LAMPO_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(LAMPO_CUDA_ENABLED ON)
    set(LAMPO_CUDA_WHY "LAMPO_CUDA=${LAMPO_CUDA} and the compiler ${CMAKE_CUDA_COMPILER} was found")
  elseif(LAMPO_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LAMPO_CUDA=ON, but no CUDA compiler was found: put nvcc on PATH or set CUDACXX")
  else()
    set(LAMPO_CUDA_WHY "LAMPO_CUDA=AUTO and no CUDA compiler was found (PATH, CUDACXX)")
  endif()
endif()
message(STATUS "lampo: CUDA backend ${LAMPO_CUDA_ENABLED}: ${LAMPO_CUDA_WHY}")
