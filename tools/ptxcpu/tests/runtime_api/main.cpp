// runtime_api <name>: runs a check. Without a name: lists them all.
#include "check.hpp"

int main(int count, char** arguments) {
  for (const Check& check : all_checks()) {
    if (count == 1) printf("%s\n", check.name.c_str());
    if (count == 2 && check.name == arguments[1]) check.run();
  }
  return failures == 0 ? 0 : 1;
}
