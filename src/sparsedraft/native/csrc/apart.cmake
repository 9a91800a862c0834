# Run before linking (see CMakeLists.txt): what is compiled for a set of vectors may reach no CPU without it. So its objects must
# hold no code that runs when the module is loaded, and no function that the linker could take for the other objects, too
# (inline functions and templates of shared headers, where the compiler did not inline them).
foreach(object IN LISTS OBJECTS)
  if(NOT object MATCHES "kernels_avx")
    continue()
  endif()
  execute_process(COMMAND ${OBJDUMP} -h ${object} OUTPUT_VARIABLE sections COMMAND_ERROR_IS_FATAL ANY)
  if(sections MATCHES "\\.(init_array|ctors)")
    message(FATAL_ERROR "${object} has code that runs when the module is loaded, on any CPU: make its globals constexpr")
  endif()
  execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL " [WVu] [^\n]+" shared "${symbols}")
  list(FILTER shared EXCLUDE REGEX "simd_avx")
  if(shared)
    message(FATAL_ERROR "${object} holds functions that other objects may be linked with: ${shared}")
  endif()
endforeach()
