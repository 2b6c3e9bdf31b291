# SPDX-License-Identifier: Apache-2.0
# The CPU backend. Kernels, and the table that lists them, are compiled once per instruction set,
# inside namespace lampo::cpu::<isa>; backend.cpp, which picks a table, and the runtime once, for the
# baseline.

file(GLOB LAMPO_CPU_SOURCES CONFIGURE_DEPENDS csrc/cpu/backend.cpp csrc/cpu/runtime/*.cpp)
file(GLOB LAMPO_KERNEL_SOURCES CONFIGURE_DEPENDS csrc/cpu/kernel_table.cpp
     csrc/cpu/attention/*.cpp csrc/cpu/linear/*.cpp csrc/cpu/sampling/*.cpp
     csrc/cpu/elementwise/*.cpp csrc/cpu/recurrent/*.cpp)
set(LAMPO_CPU_OBJECTS)
set(LAMPO_ISAS)

function(lampo_cpu_objects name)
  cmake_parse_arguments(ARG "" "" "SOURCES;OPTIONS;DEFINITIONS" ${ARGN})
  add_library(${name} OBJECT ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE csrc)
  target_compile_options(${name} PRIVATE ${LAMPO_CXX_FLAGS} ${ARG_OPTIONS})
  target_compile_definitions(${name} PRIVATE ${ARG_DEFINITIONS})
  set(LAMPO_CPU_OBJECTS ${LAMPO_CPU_OBJECTS} $<TARGET_OBJECTS:${name}> PARENT_SCOPE)
endfunction()

# GCC before 13 warns of its own intrinsics' deliberately undefined operands (GCC bug 105593).
set(LAMPO_ISA_WARNINGS $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>
                       $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)

macro(lampo_isa isa)
  lampo_cpu_objects(lampo_cpu_${isa} SOURCES ${LAMPO_KERNEL_SOURCES}
                    OPTIONS ${LAMPO_ISA_WARNINGS} ${ARGN}
                    DEFINITIONS LAMPO_ISA=${isa})
  list(APPEND LAMPO_ISAS ${isa})
endmacro()

lampo_isa(baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  lampo_isa(avx2 -mavx2 -mfma -mf16c -mbmi2 -mlzcnt -mpopcnt)
  lampo_isa(avx512 -mavx2 -mfma -mf16c -mbmi2 -mlzcnt -mpopcnt -mavx512f -mavx512bw -mavx512dq
            -mavx512vl -mavx512cd -mavx512vnni -mavx512bf16 -mprefer-vector-width=512)
endif()
list(TRANSFORM LAMPO_ISAS TOUPPER OUTPUT_VARIABLE LAMPO_ISA_DEFINITIONS)
list(TRANSFORM LAMPO_ISA_DEFINITIONS PREPEND "LAMPO_HAVE_ISA_")
lampo_cpu_objects(lampo_cpu SOURCES ${LAMPO_CPU_SOURCES} DEFINITIONS ${LAMPO_ISA_DEFINITIONS})
message(STATUS "lampo: CPU kernels for ${LAMPO_ISAS}")
