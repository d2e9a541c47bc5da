# pyconv._cuda_emulated (code for sm_80) and pyconv._cuda_emulated_sm75: the same CUDA sources, what
# nvcc makes of them executed on the CPU by tools/ptxcpu. For tests.
include(tools/ptxcpu/ptxcpu.cmake)

function(add_emulated_module name architecture)
  pybind11_add_module(${name} MODULE NO_EXTRAS ${cuda_host_sources} csrc/bindings/array_numpy.cpp)
  target_compile_definitions(${name} PRIVATE PYCONV_MODULE=${name} PYCONV_EMULATED_DEVICE
    PYCONV_VERSION="${PYCONV_VERSION}" PYCONV_CUDA_ARCHITECTURES="${architecture}")
  target_link_libraries(${name} PRIVATE pyconv_options)
  ptxcpu_emulate(TARGET ${name} SOURCES ${cuda_kernel_sources} ARCH ${architecture})
  install(TARGETS ${name} LIBRARY DESTINATION pyconv)
endfunction()

add_emulated_module(_cuda_emulated 80)
add_emulated_module(_cuda_emulated_sm75 75)
