// What the transport is told: limits at its start, and what is served.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "call.hpp"

namespace headroom {

struct Limits {
  size_t max_message_bytes = 8 << 20;
  size_t max_header_bytes = 16 << 10;
  size_t max_buffered_bytes = 512 << 20;  // of all connections together
  uint32_t max_streams = 1024;            // of one connection
  size_t max_connections = 4096;
  size_t max_calls = 8192;  // open at once, of all connections together
  int64_t handshake_timeout_ns = 10'000'000'000;
  int64_t write_timeout_ns = 30'000'000'000;
  int64_t keepalive_ns = 60'000'000'000;
  int64_t keepalive_timeout_ns = 20'000'000'000;
  int64_t max_age_ns = 3'600'000'000'000;
  int64_t age_grace_ns = 10'000'000'000;
};

// Stands for every path that is no method.
constexpr uint32_t kUnknownRoute = 0;

// A method, or one model of a method that serves many.
struct Route {
  int64_t budget_ns = 0;
  Status queue_full;  // what is answered when its queue is
};

struct Method {
  bool is_unary = true;
  bool names_model = false;  // its message begins with a model's name and version, which lead to a route of their own
  uint32_t route = 0;
  int64_t credit = 1;  // messages of a stream that Python is given before it asks for more
};

// The key of a model's route.
inline std::string model_key(std::string_view name, std::string_view version) {
  return std::string(name) + '\0' + std::string(version);
}

// What is served. Replaced as a whole while calls are under way: a route keeps its number for ever.
struct Table {
  std::vector<Route> routes;
  std::unordered_map<std::string, Method> methods;   // by path
  std::unordered_map<std::string, uint32_t> models;  // route by model_key
};

}  // namespace headroom
