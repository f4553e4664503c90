// The command line as one value. Takes argv; leaves a checked Options or a UsageError that names flag, value and what
// is allowed. Read by every other file.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace load {

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Protocol { http1, grpc };
enum class Mode { open, closed };
enum class ArrivalLaw { uniform, poisson };

// Where the requests go: http://host:port/path.
struct Target {
    std::string url;
    std::string host;
    std::string port;
    std::string authority;  // host:port as written, for Host and :authority
    std::string path;
    sockaddr_storage address{};
    socklen_t address_bytes = 0;
};

struct Options {
    Target target;
    Protocol protocol = Protocol::http1;
    Mode mode = Mode::open;
    double rate = 0.0;
    double duration_s = 10.0;
    double warmup_s = 2.0;
    int64_t num_connections = 64;
    int64_t num_streams = 32;
    int64_t max_outstanding = 0;  // 0: only the timeout bounds it
    std::string bodies_path;
    std::string unique_marker;
    uint64_t unique_start = 0;
    std::vector<std::pair<std::string, std::string>> headers;
    std::string method = "POST";
    int64_t timeout_ms = 5000;
    double deadline_ms = 0.0;  // 0: no deadline, so no goodput
    int64_t items_per_request = 1;
    int64_t timeline_ms = 1000;
    ArrivalLaw arrivals = ArrivalLaw::uniform;
    int64_t arrivals_burst = 1;
    uint64_t seed = 1;
    int64_t num_threads = 1;
    int64_t timer_slack_us = 0;
    bool retries_resets = false;
    bool spins = false;
    bool allows_remote = false;
    bool wants_help = false;
    std::string json_path;
    std::string csv_path;
};

Options parse_options(const std::vector<std::string>& arguments);
std::string usage();

// Splits the URL and resolves its host; raises UsageError for any host but loopback unless `allows_remote`.
Target parse_target(const std::string& url, bool allows_remote);

}  // namespace load
