# ptxcpu_emulate(TARGET <target> SOURCES <a.cu> ... [ARCH <80>] [NVCC_FLAGS <flag> ...])
#
# Adds CUDA sources to a target so that they run on the CPU. nvcc compiles each source to an
# ordinary object (host code, launchers, registration) and to PTX; the PTX is translated to C++ and
# compiled by the host compiler; and instead of libcudart the emulated runtime is linked. The
# include directories and definitions of the target apply to the CUDA sources too. The target needs
# no CUDA language in project(). The same sources may be given to several targets, with the same
# ARCH or another.
#
# Variables: PTXCPU_NVCC, PTXCPU_PYTHON, PTXCPU_MARCH (default native), PTXCPU_OPTIMIZE (default 2;
# with 1, translated kernels compile in two thirds of the time and run a fifth slower), and
# PTXCPU_SANITIZE, for example "address,undefined", which instruments the translated kernels and the
# emulated runtime.

cmake_minimum_required(VERSION 3.21)

set(PTXCPU_MARCH native CACHE STRING "Instruction set for translated kernels")
set(PTXCPU_OPTIMIZE 2 CACHE STRING "Optimization level for translated kernels")
set(PTXCPU_SANITIZE "" CACHE STRING "Sanitizers for translated kernels, as address,undefined")
find_program(PTXCPU_NVCC nvcc REQUIRED)
find_program(PTXCPU_PYTHON NAMES python3 python REQUIRED)

# The headers that belong to the nvcc in use; nvcc itself knows where they are.
function(_ptxcpu_find_cuda_include)
    if(PTXCPU_CUDA_INCLUDE)
        return()
    endif()
    execute_process(
        COMMAND "${PTXCPU_NVCC}" --dryrun -E -x cu /dev/null
        ERROR_VARIABLE description OUTPUT_QUIET
    )
    string(REGEX MATCH "INCLUDES=\"-I([^\"]+)\"" unused "${description}")
    find_path(PTXCPU_CUDA_INCLUDE cuda_runtime_api.h HINTS "${CMAKE_MATCH_1}" REQUIRED)
endfunction()

function(_ptxcpu_common_properties target)
    set_target_properties(${target} PROPERTIES
        CXX_STANDARD 17
        CXX_VISIBILITY_PRESET hidden
        INTERPROCEDURAL_OPTIMIZATION OFF
        POSITION_INDEPENDENT_CODE ON
    )
    # -ffp-contract=off: PTX says which multiplications are fused. -fwrapv: PTX integers wrap.
    target_compile_options(${target} PRIVATE
        -O${PTXCPU_OPTIMIZE} -march=${PTXCPU_MARCH} -fno-fast-math -ffp-contract=off -fwrapv
        -fno-strict-aliasing -w
    )
    if(PTXCPU_SANITIZE)
        target_compile_options(${target} PRIVATE
            -fsanitize=${PTXCPU_SANITIZE} -fno-sanitize-recover=undefined -g1
        )
    endif()
endfunction()

# The objects of the emulated runtime, compiled once for all targets of the build tree.
function(_ptxcpu_add_runtime)
    if(TARGET ptxcpu_runtime)
        return()
    endif()
    set(root "${CMAKE_CURRENT_FUNCTION_LIST_DIR}")
    file(GLOB sources CONFIGURE_DEPENDS "${root}/runtime/*.cpp" "${root}/cudart/*.cpp")
    list(FILTER sources EXCLUDE REGEX "direct_launch.cpp$")
    add_library(ptxcpu_runtime OBJECT ${sources})
    target_include_directories(ptxcpu_runtime SYSTEM PRIVATE "${PTXCPU_CUDA_INCLUDE}")
    _ptxcpu_common_properties(ptxcpu_runtime)
endfunction()

# Files made from one .cu: <prefix>.o, <prefix>.ptx and <prefix>.ptx.cpp.
function(_ptxcpu_compile_source target source prefix arch nvcc_flags)
    get_filename_component(stem "${source}" NAME_WLE)
    string(MAKE_C_IDENTIFIER "ptxcpu_marker_${target}_${source}" marker)
    # A device variable with a unique name tells the runtime which translated file belongs to which
    # object.
    file(CONFIGURE OUTPUT "${prefix}.marker.h"
        CONTENT "extern \"C\" {\n__device__ char ${marker};\n}\n"
    )
    set(includes "$<TARGET_PROPERTY:${target},INCLUDE_DIRECTORIES>")
    set(definitions "$<TARGET_PROPERTY:${target},COMPILE_DEFINITIONS>")
    # -fno-gnu-unique: a process may load several emulated libraries, each with static variables of
    # its own. The PTX is an intermediate file of the object. It must come from the same run of
    # nvcc: the names of kernels in anonymous namespaces may contain its process number.
    add_custom_command(
        OUTPUT "${prefix}.o" "${prefix}.ptx"
        COMMAND "${CMAKE_COMMAND}" -E make_directory "${prefix}.keep"
        COMMAND "${PTXCPU_NVCC}" -std=c++17 -O3 -arch=sm_${arch} -Xcompiler=-fPIC,-fno-gnu-unique
            -include "${prefix}.marker.h"
            "$<$<BOOL:${includes}>:-I$<JOIN:${includes},$<SEMICOLON>-I>>"
            "$<$<BOOL:${definitions}>:-D$<JOIN:${definitions},$<SEMICOLON>-D>>"
            ${nvcc_flags} "${source}" -cudart none -c -o "${prefix}.o" -MD -MF "${prefix}.o.d"
            --keep --keep-dir "${prefix}.keep"
        COMMAND "${CMAKE_COMMAND}" -E rename "${prefix}.keep/${stem}.ptx" "${prefix}.ptx"
        COMMAND "${CMAKE_COMMAND}" -E rm -rf "${prefix}.keep"
        DEPENDS "${source}" "${prefix}.marker.h"
        DEPFILE "${prefix}.o.d"
        COMMENT "nvcc ${source} for ${target}"
        COMMAND_EXPAND_LISTS VERBATIM
    )
    set(root "${CMAKE_CURRENT_FUNCTION_LIST_DIR}")
    file(GLOB translator CONFIGURE_DEPENDS
        "${root}/ptxcpu/*.py" "${root}/ptxcpu/instructions/*.py"
    )
    add_custom_command(
        OUTPUT "${prefix}.ptx.cpp"
        COMMAND "${CMAKE_COMMAND}" -E env "PYTHONPATH=${root}" PYTHONDONTWRITEBYTECODE=1
            "${PTXCPU_PYTHON}" -m ptxcpu translate "${prefix}.ptx" -o "${prefix}.ptx.cpp"
        DEPENDS "${prefix}.ptx" ${translator}
        COMMENT "Translating PTX of ${source} for ${target}"
        VERBATIM
    )
endfunction()

function(ptxcpu_emulate)
    cmake_parse_arguments(PARSE_ARGV 0 arg "" "TARGET;ARCH" "SOURCES;NVCC_FLAGS")
    if(NOT arg_TARGET OR NOT arg_SOURCES)
        message(FATAL_ERROR "ptxcpu_emulate needs TARGET and SOURCES")
    endif()
    if(NOT arg_ARCH)
        set(arg_ARCH 80)
    endif()
    find_package(Threads REQUIRED)  # here: imported targets are known in one directory only
    _ptxcpu_find_cuda_include()
    _ptxcpu_add_runtime()
    set(objects)
    set(translated)
    foreach(source IN LISTS arg_SOURCES)
        get_filename_component(source "${source}" ABSOLUTE)
        get_filename_component(name "${source}" NAME)
        string(SHA1 hash "${source}")  # sources in different folders may have the same name
        string(SUBSTRING "${hash}" 0 8 hash)
        set(prefix "${CMAKE_CURRENT_BINARY_DIR}/ptxcpu/${arg_TARGET}/${name}.${hash}")
        _ptxcpu_compile_source(
            ${arg_TARGET} "${source}" "${prefix}" ${arg_ARCH} "${arg_NVCC_FLAGS}"
        )
        list(APPEND objects "${prefix}.o")
        list(APPEND translated "${prefix}.ptx.cpp")
    endforeach()
    # A library of its own: translated kernels must not get the target's warnings or
    # floating-point flags.
    add_library(${arg_TARGET}_ptxcpu OBJECT ${translated})
    target_include_directories(${arg_TARGET}_ptxcpu PRIVATE
        "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/runtime"
    )
    _ptxcpu_common_properties(${arg_TARGET}_ptxcpu)
    set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
    target_include_directories(${arg_TARGET} SYSTEM PRIVATE "${PTXCPU_CUDA_INCLUDE}")
    target_sources(${arg_TARGET} PRIVATE
        ${objects} $<TARGET_OBJECTS:${arg_TARGET}_ptxcpu> $<TARGET_OBJECTS:ptxcpu_runtime>
    )
    target_link_libraries(${arg_TARGET} PRIVATE Threads::Threads)
    if(PTXCPU_SANITIZE)
        target_link_options(${arg_TARGET} PRIVATE -fsanitize=${PTXCPU_SANITIZE})
    endif()
endfunction()
