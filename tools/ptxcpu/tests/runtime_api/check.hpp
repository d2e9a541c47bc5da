// A list of named checks; main.cpp runs the one named on the command line.
#pragma once
#include <cuda_runtime.h>

#include <cstdio>
#include <string>
#include <vector>

extern "C" {
const char* ptxcpu_last_error_message();
void ptxcpu_register_buffer(const void* pointer, size_t bytes);
void ptxcpu_unregister_buffer(const void* pointer);
void ptxcpu_reset_error();
}

struct Check {
  std::string name;
  void (*run)();
};

inline std::vector<Check>& all_checks() {
  static std::vector<Check> checks;
  return checks;
}

inline bool add_check(const char* name, void (*run)()) {
  all_checks().push_back({name, run});
  return true;
}

inline int failures = 0;

#define CHECK(name)                                                  \
  void check_##name();                                               \
  const bool name##_is_in_the_list = add_check(#name, check_##name); \
  void check_##name()

#define EXPECT(condition)                                                                     \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      failures++;                                                                             \
      printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, ptxcpu_last_error_message()); \
    }                                                                                         \
  } while (false)
