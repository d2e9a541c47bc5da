# pyconv._cuda: machine code for every architecture that the toolkit knows, and PTX of the newest for
# those to come.
include(CheckLanguage)

# Set before the language is enabled: CMake's own default may be one that the toolkit has dropped.
set(CMAKE_CUDA_ARCHITECTURES 80)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(PYCONV_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PYCONV_CUDA=ON, but there is no nvcc. Put it on the PATH or set CUDACXX.")
  endif()
  message(STATUS "pyconv: no nvcc, so no CUDA kernels")
  return()
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit REQUIRED)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  message(FATAL_ERROR "pyconv: expected CUDA 12 or later. "
    "Received: ${CMAKE_CUDA_COMPILER_VERSION}. Use a newer nvcc or PYCONV_CUDA=OFF.")
endif()

set(architectures 75 80 86 89 90)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND architectures 100 120)
endif()
set(PYCONV_CUDA_ARCHITECTURES "${architectures}" CACHE STRING "Architectures to build for")
list(TRANSFORM PYCONV_CUDA_ARCHITECTURES APPEND "-real" OUTPUT_VARIABLE real_architectures)
list(GET PYCONV_CUDA_ARCHITECTURES -1 newest)

add_library(pyconv_cuda_kernels OBJECT ${cuda_kernel_sources})
set_target_properties(pyconv_cuda_kernels PROPERTIES
  CUDA_ARCHITECTURES "${real_architectures};${newest}-virtual"
  CUDA_VISIBILITY_PRESET hidden)
# Multiply-adds are fused in sums (nvcc's default); where a result must round like the CPU's, the
# kernels say so themselves.
target_compile_options(pyconv_cuda_kernels PRIVATE -Xcompiler=-Wall,-Wextra
  $<$<BOOL:${PYCONV_WERROR}>:-Werror=all-warnings -Xcompiler=-Werror>)

pybind11_add_module(_cuda MODULE NO_EXTRAS ${cuda_host_sources} csrc/bindings/array_cuda.cpp)
string(REPLACE ";" " " architecture_names "${PYCONV_CUDA_ARCHITECTURES}")
target_compile_definitions(_cuda PRIVATE PYCONV_MODULE=_cuda PYCONV_VERSION="${PYCONV_VERSION}"
  PYCONV_CUDA_ARCHITECTURES="${architecture_names}")
set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static LINKER_LANGUAGE CXX)
target_include_directories(_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(_cuda PRIVATE pyconv_options pyconv_cuda_kernels CUDA::cudart_static)
install(TARGETS _cuda LIBRARY DESTINATION pyconv)
