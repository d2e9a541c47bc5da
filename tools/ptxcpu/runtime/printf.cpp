#include "printf.hpp"

#include <cstdio>
#include <string>

namespace ptxcpu {

namespace {

class ArgumentReader {
 public:
  explicit ArgumentReader(const u8* arguments) : arguments_(arguments) {}

  template <class T>
  T next() {
    offset_ = (offset_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    const T value = load<T>(arguments_ + offset_);
    offset_ += sizeof(T);
    return value;
  }

 private:
  const u8* arguments_;
  size_t offset_ = 0;
};

}  // namespace

u32 device_printf(const char* format, const u8* arguments) {
  ArgumentReader reader(arguments);
  u32 count = 0;
  for (const char* p = format; *p; ++p) {
    if (*p != '%') {
      putchar(*p);
      continue;
    }
    if (p[1] == '%') {
      putchar('%');
      ++p;
      continue;
    }
    std::string specification = "%";
    bool is_64_bit = false;
    for (++p; *p && !strchr("diouxXcsfFeEgGaAp", *p); ++p) {
      is_64_bit = is_64_bit || *p == 'l' || *p == 'z';
      specification += *p;
    }
    if (!*p) break;
    specification += *p;
    ++count;
    if (strchr("fFeEgGaA", *p)) {
      printf(specification.c_str(), reader.next<double>());
    } else if (*p == 's' || *p == 'p' || is_64_bit) {
      printf(specification.c_str(), reader.next<u64>());
    } else {
      printf(specification.c_str(), reader.next<u32>());
    }
  }
  fflush(stdout);
  return count;
}

}  // namespace ptxcpu
