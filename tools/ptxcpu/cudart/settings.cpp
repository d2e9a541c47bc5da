#include <cstdlib>
#include <stdexcept>

#include "emulation.hpp"

namespace ptxcpu::cudart {

long integer_setting(const char* name, long fallback, long lowest, long highest) {
  const char* text = getenv(name);
  if (!text || !*text) return fallback;
  char* end = nullptr;
  const long value = strtol(text, &end, 0);
  if (*end || value < lowest || value > highest) {
    throw std::invalid_argument(std::string(name) + "=" + text + ": expected a number from " +
                                std::to_string(lowest) + " to " + std::to_string(highest));
  }
  return value;
}

namespace {

bool boolean_setting(const char* name, bool fallback) {
  return integer_setting(name, fallback, 0, 1) != 0;
}

Order order_setting() {
  const char* text = getenv("PTXCPU_ORDER");
  const std::string name = text ? text : "";
  if (name.empty() || name == "forward") return Order::kForward;
  if (name == "reverse") return Order::kReverse;
  if (name == "random") return Order::kRandom;
  throw std::invalid_argument("PTXCPU_ORDER=" + name + ": expected forward, reverse or random");
}

}  // namespace

Settings read_settings() {
  Settings settings;
  settings.launch.order = order_setting();
  settings.launch.seed = integer_setting("PTXCPU_SEED", 0, 0, INT64_MAX);
  settings.launch.stress = integer_setting("PTXCPU_STRESS", 0, 0, 1000);
  settings.launch.detect_races = boolean_setting("PTXCPU_RACE", false);
  settings.launch.poison_shared = boolean_setting("PTXCPU_POISON", true);
  settings.launch.workers = integer_setting("PTXCPU_THREADS", 1, 1, 256);
  settings.strict = boolean_setting("PTXCPU_STRICT", false);
  return settings;
}

}  // namespace ptxcpu::cudart
