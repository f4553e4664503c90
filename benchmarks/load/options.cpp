// Takes the words of the command line; leaves a checked Options. One table holds every flag, its help and its setter.
#include "options.hpp"

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <limits>
#include <sstream>

namespace load {

namespace {

struct Flag {
    std::string name;
    std::string value_name;  // empty: a switch
    std::string help;
    std::function<void(const std::string&)> set;
};

[[noreturn]] void refuse(const std::string& flag, const std::string& value, const std::string& allowed) {
    throw UsageError(flag + " is '" + value + "'; allowed " + allowed);
}

std::string plain(double number) {
    std::ostringstream text;
    text << std::defaultfloat << number;
    return text.str();
}

double parse_number(const std::string& flag, const std::string& value, double least, double most) {
    char* end = nullptr;
    const double number = std::strtod(value.c_str(), &end);
    const bool is_number = !value.empty() && *end == '\0';
    if (!is_number || !(number >= least && number <= most)) refuse(flag, value, plain(least) + " to " + plain(most));
    return number;
}

int64_t parse_count(const std::string& flag, const std::string& value, int64_t least, int64_t most) {
    char* end = nullptr;
    errno = 0;
    const long long number = std::strtoll(value.c_str(), &end, 10);
    const bool is_number = !value.empty() && *end == '\0' && errno == 0;
    if (!is_number || number < least || number > most) {
        refuse(flag, value, "a whole number, " + std::to_string(least) + " to " + std::to_string(most));
    }
    return number;
}

template <typename Choice>
Choice parse_choice(const std::string& flag, const std::string& value,
                    const std::vector<std::pair<std::string, Choice>>& choices) {
    std::string allowed;
    for (const auto& [name, choice] : choices) {
        if (value == name) return choice;
        allowed += (allowed.empty() ? "" : " or ") + name;
    }
    refuse(flag, value, allowed);
}

std::pair<std::string, std::string> parse_header(const std::string& value) {
    const size_t colon = value.find(':');
    const bool has_line_end = value.find_first_of("\r\n") != std::string::npos;
    if (colon == std::string::npos || colon == 0 || has_line_end)
        refuse("--header", value, "'name: value' on one line");
    const size_t first = value.find_first_not_of(' ', colon + 1);
    return {value.substr(0, colon), first == std::string::npos ? "" : value.substr(first)};
}

constexpr int64_t kMaxCount = 1'000'000'000;

std::vector<Flag> flags_of(Options& o, std::string& url) {
    const auto count = [](int64_t& field, const std::string& flag, int64_t least, int64_t most = kMaxCount) {
        return [&field, flag, least, most](const std::string& v) { field = parse_count(flag, v, least, most); };
    };
    const auto number = [](double& field, const std::string& flag, double least, double most) {
        return [&field, flag, least, most](const std::string& v) { field = parse_number(flag, v, least, most); };
    };
    const auto text = [](std::string& field) { return [&field](const std::string& v) { field = v; }; };
    const auto turn_on = [](bool& field) { return [&field](const std::string&) { field = true; }; };
    return {
        {"--url", "URL", "http://host:port/path; for gRPC the path is the method, /package.Service/Method", text(url)},
        {"--protocol", "http1|grpc", "default http1",
         [&o](const std::string& v) {
             o.protocol =
                 parse_choice<Protocol>("--protocol", v, {{"http1", Protocol::http1}, {"grpc", Protocol::grpc}});
         }},
        {"--mode", "open|closed", "open: requests leave on a fixed schedule; closed: each answer triggers the next",
         [&o](const std::string& v) {
             o.mode = parse_choice<Mode>("--mode", v, {{"open", Mode::open}, {"closed", Mode::closed}});
         }},
        {"--rate", "N", "open loop: requests per second", number(o.rate, "--rate", 0.001, 1e7)},
        {"--duration-s", "S", "measured time, default 10", number(o.duration_s, "--duration-s", 0.01, 1e6)},
        {"--warmup-s", "S", "time before it, sent but not measured, default 2",
         number(o.warmup_s, "--warmup-s", 0, 1e5)},
        {"--connections", "N", "default 64", count(o.num_connections, "--connections", 1, 60'000)},
        {"--streams", "N", "gRPC: most concurrent calls per connection, default 32",
         count(o.num_streams, "--streams", 1, 100'000)},
        {"--in-flight", "N",
         "open loop: most requests outstanding (queued here or unanswered); above it a scheduled "
         "request is counted as not_sent; default unbounded",
         count(o.max_outstanding, "--in-flight", 1)},
        {"--bodies", "FILE", "records of uint32 little-endian length + bytes, used in turn; default one empty body",
         text(o.bodies_path)},
        {"--unique-marker", "TEXT", "every occurrence in a body becomes a unique zero-padded number of that width",
         text(o.unique_marker)},
        {"--unique-start", "N", "the first such number, default 0",
         [&o](const std::string& v) {
             const int64_t most = std::numeric_limits<int64_t>::max() / 2;
             o.unique_start = static_cast<uint64_t>(parse_count("--unique-start", v, 0, most));
         }},
        {"--header", "'k: v'", "added to every request; may be repeated",
         [&o](const std::string& v) { o.headers.push_back(parse_header(v)); }},
        {"--method", "NAME", "HTTP/1.1 method, default POST", text(o.method)},
        {"--timeout-ms", "MS", "from the scheduled time, default 5000",
         count(o.timeout_ms, "--timeout-ms", 1, 3'600'000)},
        {"--deadline-ms", "MS", "counts ok answers within it as goodput, later ones as late",
         number(o.deadline_ms, "--deadline-ms", 0.001, 3.6e6)},
        {"--items", "N", "rows in one request, only to report rows/s, default 1",
         count(o.items_per_request, "--items", 1)},
        {"--timeline-ms", "MS", "width of a timeline step, default 1000",
         count(o.timeline_ms, "--timeline-ms", 10, 3'600'000)},
        {"--arrivals", "uniform|poisson", "default uniform",
         [&o](const std::string& v) {
             o.arrivals = parse_choice<ArrivalLaw>(
                 "--arrivals", v, {{"uniform", ArrivalLaw::uniform}, {"poisson", ArrivalLaw::poisson}});
         }},
        {"--arrivals-burst", "N", "requests at each arrival; the rate stays --rate, default 1",
         count(o.arrivals_burst, "--arrivals-burst", 1, 1'000'000)},
        {"--seed", "N", "of Poisson arrivals, default 1",
         [&o](const std::string& v) {
             o.seed = static_cast<uint64_t>(parse_count("--seed", v, 0, std::numeric_limits<int64_t>::max()));
         }},
        {"--threads", "N", "one event loop each, connections and rate shared out, default 1",
         count(o.num_threads, "--threads", 1, 256)},
        {"--retry-reset", "", "send again what was reset before any byte of an answer", turn_on(o.retries_resets)},
        {"--timer-slack-us", "N",
         "lets the kernel wake the generator up to this late, which gathers requests and saves "
         "CPU; latency still counts from the schedule; default 0",
         count(o.timer_slack_us, "--timer-slack-us", 0, 100'000)},
        {"--spin", "", "poll instead of sleeping in the last 50 us before a request is due", turn_on(o.spins)},
        {"--json", "FILE", "the result; - for stdout", text(o.json_path)},
        {"--csv", "FILE", "one line per measured request", text(o.csv_path)},
        {"--allow-remote", "", "a target that is not on loopback", turn_on(o.allows_remote)},
        {"--help", "", "this text", turn_on(o.wants_help)},
    };
}

const Flag& find_flag(const std::vector<Flag>& flags, const std::string& name) {
    for (const Flag& flag : flags) {
        if (flag.name == name) return flag;
    }
    throw UsageError("unknown flag '" + name + "'; --help lists the flags");
}

void check_together(const Options& o) {
    if (o.mode == Mode::open && o.rate == 0.0) throw UsageError("--rate is missing; --mode open needs it");
    if (o.num_connections < o.num_threads) {
        refuse("--connections", std::to_string(o.num_connections), "--threads or more");
    }
    const size_t width = o.unique_marker.size();
    // Ten digits outlast any run; a narrower number would start again from 0.
    if (width > 0 && (width < 10 || width > 19)) refuse("--unique-marker", o.unique_marker, "10 to 19 characters");
    if (width > 0 && std::to_string(o.unique_start).size() > width) {
        refuse("--unique-start", std::to_string(o.unique_start), "at most as many digits as --unique-marker has");
    }
}

}  // namespace

Options parse_options(const std::vector<std::string>& arguments) {
    Options options;
    std::string url;
    const std::vector<Flag> flags = flags_of(options, url);
    for (size_t i = 0; i < arguments.size(); ++i) {
        const Flag& flag = find_flag(flags, arguments[i]);
        const bool takes_value = !flag.value_name.empty();
        if (takes_value && i + 1 == arguments.size())
            throw UsageError(flag.name + " needs a value: " + flag.value_name);
        flag.set(takes_value ? arguments[++i] : "");
    }
    if (options.wants_help) return options;
    check_together(options);
    options.target = parse_target(url, options.allows_remote);
    return options;
}

std::string usage() {
    Options options;
    std::string url;
    std::ostringstream text;
    text << "headroom-load: open-loop load generator for HTTP/1.1 and gRPC\n\n";
    for (const Flag& flag : flags_of(options, url)) {
        text << "  " << flag.name << (flag.value_name.empty() ? "" : " ") << flag.value_name << "\n      " << flag.help
             << "\n";
    }
    return text.str();
}

}  // namespace load
