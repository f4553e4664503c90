#include "wire.hpp"

#include <array>

namespace headroom {
namespace {

constexpr int64_t kHourNs = 3'600'000'000'000;
constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

constexpr std::array<int8_t, 256> reversed_alphabet() {
  std::array<int8_t, 256> table{};
  for (auto& entry : table) entry = -1;
  for (size_t i = 0; i < kAlphabet.size(); i++) table[static_cast<unsigned char>(kAlphabet[i])] = static_cast<int8_t>(i);
  return table;
}

constexpr auto kReversed = reversed_alphabet();

int64_t ns_of_unit(char unit) {
  switch (unit) {
    case 'H': return kHourNs;
    case 'M': return kHourNs / 60;
    case 'S': return 1'000'000'000;
    case 'm': return 1'000'000;
    case 'u': return 1'000;
    case 'n': return 1;
    default: return 0;
  }
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

std::optional<int64_t> parse_grpc_timeout(std::string_view text) {
  if (text.size() < 2 || text.size() > 9) return std::nullopt;
  const int64_t unit_ns = ns_of_unit(text.back());
  if (unit_ns == 0) return std::nullopt;
  int64_t value = 0;
  for (char c : text.substr(0, text.size() - 1)) {
    if (!is_digit(c)) return std::nullopt;
    value = value * 10 + (c - '0');
  }
  constexpr int64_t kMaxNs = INT64_MAX / 4;  // room for a clock's reading to be added
  return value > kMaxNs / unit_ns ? kMaxNs : value * unit_ns;
}

std::optional<int64_t> parse_timeout_ms(std::string_view text) {
  if (text.empty() || text.size() > 17) return std::nullopt;
  int64_t whole = 0, fraction_ns = 0, digit_ns = 100'000;
  bool is_fraction = false, has_digit = false;
  for (char c : text) {
    if (c == '.' && !is_fraction) {
      is_fraction = true;
    } else if (!is_digit(c)) {
      return std::nullopt;
    } else if (is_fraction) {
      fraction_ns += (c - '0') * digit_ns;
      digit_ns /= 10;
      has_digit = true;
    } else {
      whole = whole * 10 + (c - '0');
      has_digit = true;
    }
  }
  if (!has_digit || whole > 3'600'000) return std::nullopt;
  const int64_t timeout_ns = whole * 1'000'000 + fraction_ns;
  if (timeout_ns <= 0 || timeout_ns > kHourNs) return std::nullopt;
  return timeout_ns;
}

std::string percent_encode(std::string_view text) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string encoded;
  encoded.reserve(text.size());
  for (unsigned char c : text) {
    if (c >= 0x20 && c <= 0x7e && c != '%') {
      encoded += static_cast<char>(c);
    } else {
      encoded += '%';
      encoded += kHex[c >> 4];
      encoded += kHex[c & 15];
    }
  }
  return encoded;
}

std::string_view cut_text(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  size_t end = max_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) end--;
  return text.substr(0, end);
}

std::string base64_encode(std::string_view bytes) {
  std::string encoded;
  encoded.reserve((bytes.size() + 2) / 3 * 4);
  uint32_t bits = 0;
  int num_bits = 0;
  for (unsigned char c : bytes) {
    bits = bits << 8 | c;
    num_bits += 8;
    while (num_bits >= 6) {
      num_bits -= 6;
      encoded += kAlphabet[bits >> num_bits & 63];
    }
  }
  if (num_bits > 0) encoded += kAlphabet[bits << (6 - num_bits) & 63];
  return encoded;
}

std::optional<std::string> base64_decode(std::string_view text) {
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  if (text.size() % 4 == 1) return std::nullopt;
  std::string decoded;
  decoded.reserve(text.size() * 3 / 4);
  uint32_t bits = 0;
  int num_bits = 0;
  for (unsigned char c : text) {
    if (kReversed[c] < 0) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(kReversed[c]);
    num_bits += 6;
    if (num_bits >= 8) {
      num_bits -= 8;
      decoded += static_cast<char>(bits >> num_bits & 255);
    }
  }
  return decoded;
}

bool is_metadata_name(std::string_view name) {
  if (name.empty() || name.substr(0, 5) == "grpc-") return name == "grpc-status-details-bin" || name == "grpc-retry-pushback-ms";
  if (name == "te" || name == "content-type" || name == "connection" || name == "transfer-encoding") return false;
  for (char c : name) {
    if (!is_digit(c) && !(c >= 'a' && c <= 'z') && c != '_' && c != '-' && c != '.') return false;
  }
  return true;
}

bool is_metadata_value(std::string_view value) {
  for (unsigned char c : value) {
    if (c < 0x20 || c > 0x7e) return false;
  }
  return value.empty() || (value.front() != ' ' && value.back() != ' ');
}

bool is_binary_name(std::string_view name) { return name.size() > 4 && name.substr(name.size() - 4) == "-bin"; }

}  // namespace headroom
