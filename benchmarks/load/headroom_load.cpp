// headroom-load: the project's one load generator, open or closed loop, HTTP/1.1 and gRPC. Takes a URL and a file of
// bodies; leaves one JSON result. Exit status: 0 measured, 1 could not connect or write, 2 wrong usage.
#include <sys/prctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <thread>
#include <vector>

#include "clock.hpp"
#include "engine.hpp"
#include "grpc.hpp"
#include "http1.hpp"
#include "report.hpp"

namespace load {

namespace {

constexpr int64_t kStartDelayNs = 20 * kNsPerMs;  // enough for every thread to reach its loop

Messages frame_bodies(const Options& options) {
    const auto bodies = options.bodies_path.empty() ? std::vector<std::string>{""} : read_bodies(options.bodies_path);
    if (options.protocol == Protocol::grpc) return Messages(bodies, options.unique_marker, grpc_prefix);
    return Messages(bodies, options.unique_marker,
                    [&options](size_t body_bytes) { return http1_head(options, body_bytes); });
}

void raise_descriptor_limit() {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

Tally measure(const Options& options, const Messages& messages) {
    std::vector<std::unique_ptr<Engine>> engines;
    for (int64_t thread = 0; thread < options.num_threads; ++thread) {
        engines.push_back(std::make_unique<Engine>(options, messages, thread));
        const int error = engines.back()->connect();
        if (error != 0)
            throw std::runtime_error("cannot connect to " + options.target.url + ": " + std::strerror(error));
    }
    const int64_t start_ns = now_ns() + kStartDelayNs;
    std::vector<std::thread> threads;
    for (auto& engine : engines) threads.emplace_back([&engine, start_ns] { engine->run(start_ns); });
    for (auto& thread : threads) thread.join();
    Tally tally;
    for (const auto& engine : engines) tally.merge(engine->tally());
    return tally;
}

void write_file(const std::string& path, const std::function<void(std::ostream&)>& write) {
    if (path.empty()) return;
    if (path == "-") return write(std::cout);
    std::ofstream file(path);
    write(file);
    file.close();
    if (!file) throw std::runtime_error("cannot write " + path + ": " + std::strerror(errno));
}

int run(const std::vector<std::string>& arguments) {
    const Options options = parse_options(arguments);
    if (options.wants_help) {
        std::cout << usage();
        return 0;
    }
    const Messages messages = frame_bodies(options);
    raise_descriptor_limit();
    // Left alone, Linux may wake a sleeper 50 us late; 0 would mean that default, so the least is 1 ns.
    prctl(PR_SET_TIMERSLACK, std::max<int64_t>(1, options.timer_slack_us * 1000));
    const Tally tally = measure(options, messages);
    write_summary(std::cerr, options, tally);
    write_file(options.json_path, [&](std::ostream& out) { write_json(out, options, tally, messages.size()); });
    write_file(options.csv_path, [&](std::ostream& out) { write_csv(out, tally); });
    return 0;
}

}  // namespace

}  // namespace load

int main(int argc, char** argv) {
    try {
        return load::run(std::vector<std::string>(argv + 1, argv + argc));
    } catch (const load::UsageError& error) {
        std::cerr << "headroom-load: " << error.what() << "\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "headroom-load: " << error.what() << "\n";
        return 1;
    }
}
