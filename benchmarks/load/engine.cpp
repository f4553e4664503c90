// The event loop. Latency counts from the time a request was scheduled for, not from when a connection became free:
// a server that stalls is charged for every request that was due meanwhile (no coordinated omission, Gil Tene).
#include "engine.hpp"

#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "clock.hpp"
#include "grpc.hpp"
#include "http1.hpp"

namespace load {

namespace {

constexpr size_t kReadBytes = 256 << 10;
constexpr int kMaxEvents = 512;
constexpr int64_t kReopenAfterNs = 50 * kNsPerMs;
constexpr int64_t kSpinNs = 50'000;

size_t share_of(int64_t total, const Options& options, int64_t thread) {
    return static_cast<size_t>(total / options.num_threads + (thread < total % options.num_threads ? 1 : 0));
}

double seconds(const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

// By system call: glibc has epoll_pwait2 from 2.35 only, Linux from 5.11.
int wait_for_events(int epoll, epoll_event* events, int64_t timeout_ns) {
    const timespec timeout{timeout_ns / kNsPerSecond, timeout_ns % kNsPerSecond};
    const long num_events = syscall(SYS_epoll_pwait2, epoll, events, kMaxEvents, &timeout, nullptr, 0);
    if (num_events < 0 && errno != EINTR) throw std::system_error(errno, std::generic_category(), "epoll_pwait2");
    return static_cast<int>(std::max(num_events, 0L));
}

}  // namespace

Engine::Engine(const Options& options, const Messages& messages, int64_t thread)
    : options_(options),
      messages_(messages),
      num_connections_(share_of(options.num_connections, options, thread)),
      max_outstanding_(std::max<size_t>(1, share_of(options.max_outstanding, options, thread))),
      timeout_ns_(options.timeout_ms * kNsPerMs),
      numbering_{options.unique_start + static_cast<uint64_t>(thread), static_cast<uint64_t>(options.num_threads)},
      arrivals_(options, thread),
      next_message_(static_cast<size_t>(thread)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      buffer_(kReadBytes) {
    if (epoll_ < 0) throw std::system_error(errno, std::generic_category(), "epoll_create1");
}

Engine::~Engine() {
    connections_.clear();
    ::close(epoll_);
}

int Engine::connect() {
    for (size_t i = 0; i < num_connections_; ++i) open_connection();
    const int64_t give_up_ns = now_ns() + timeout_ns_;
    while ((any_is(Connection::Phase::connecting) || any_is(Connection::Phase::greeting)) && now_ns() < give_up_ns) {
        wait(give_up_ns);
        flush_marked();
    }
    if (any_is(Connection::Phase::open)) return 0;
    return last_connect_errno_ != 0 ? last_connect_errno_ : ETIMEDOUT;
}

void Engine::run(int64_t start_ns) {
    start_ns_ = start_ns;
    measure_start_ns_ = start_ns + std::llround(options_.warmup_s * kNsPerSecond);
    measure_end_ns_ = measure_start_ns_ + std::llround(options_.duration_s * kNsPerSecond);
    rusage before{};
    rusage after{};
    run_until(start_ns);
    run_until(measure_start_ns_);
    getrusage(RUSAGE_THREAD, &before);
    run_until(measure_end_ns_);
    getrusage(RUSAGE_THREAD, &after);
    if (options_.mode == Mode::open) schedule_arrivals(now_ns());  // those due since the last turn
    tally_.user_s = seconds(after.ru_utime) - seconds(before.ru_utime);
    tally_.system_s = seconds(after.ru_stime) - seconds(before.ru_stime);
    while (outstanding_.size() > 0) turn(measure_end_ns_ + timeout_ns_);
}

void Engine::run_until(int64_t end_ns) {
    while (now_ns() < end_ns) turn(end_ns);
}

void Engine::turn(int64_t latest_wake_ns) {
    const int64_t now = now_ns();
    reopen_lost(now);
    expire(now);
    if (options_.mode == Mode::open) schedule_arrivals(now);
    dispatch(now);
    flush_marked();
    const int64_t next_due_ns = start_ns_ + arrivals_.next_ns();
    int64_t wake_ns = latest_wake_ns;
    if (options_.mode == Mode::open && next_due_ns < measure_end_ns_) wake_ns = std::min(wake_ns, next_due_ns);
    if (const Request* oldest = outstanding_.oldest()) wake_ns = std::min(wake_ns, oldest->scheduled_ns + timeout_ns_);
    if (num_to_reopen_ > 0) wake_ns = std::min(wake_ns, reopen_at_ns_);
    wait(wake_ns);
}

void Engine::wait(int64_t wake_ns) {
    epoll_event events[kMaxEvents];
    int64_t sleep_ns = std::max<int64_t>(0, wake_ns - now_ns());
    if (options_.spins) sleep_ns = std::max<int64_t>(0, sleep_ns - kSpinNs);
    const int num_events = wait_for_events(epoll_, events, sleep_ns);
    for (int i = 0; i < num_events; ++i) {
        Connection& connection = *static_cast<Connection*>(events[i].data.ptr);
        if (connection.phase() == Connection::Phase::closed) continue;
        connection.handle(events[i].events, buffer_.data(), buffer_.size());
        mark_to_flush(connection);
        settle(connection);
    }
}

void Engine::schedule_arrivals(int64_t now) {
    for (;; arrivals_.advance()) {
        const int64_t due_ns = start_ns_ + arrivals_.next_ns();
        if (due_ns > now || due_ns >= measure_end_ns_) return;
        if (options_.max_outstanding == 0 || outstanding_.size() < max_outstanding_) {
            waiting_.push_back(&schedule(due_ns));
        } else if (is_in_window(due_ns)) {
            ++tally_.num_offered;
            ++tally_.num_not_sent;
            if (!options_.csv_path.empty()) {
                tally_.samples.push_back({due_ns - measure_start_ns_, Sample::kNever, Sample::kNever, "not_sent", 0});
            }
        }
    }
}

Request& Engine::schedule(int64_t scheduled_ns) {
    Request& request = outstanding_.add(scheduled_ns);
    request.is_measured = is_in_window(scheduled_ns);
    request.message = next_message_ % messages_.size();
    request.first_number = next_number_;
    next_message_ += static_cast<size_t>(options_.num_threads);
    next_number_ += messages_.num_markers(request.message);
    if (request.is_measured) ++tally_.num_offered;
    return request;
}

void Engine::dispatch(int64_t now) {
    while (!free_.empty()) {
        Request* request = next_to_send(now);
        if (request == nullptr) return;
        Connection& connection = *free_.front();
        unlist(connection);
        hand_over(*request, connection);
        settle(connection);
    }
    for (auto waiting = waiting_.rbegin(); waiting != waiting_.rend() && !(*waiting)->has_waited; ++waiting) {
        (*waiting)->has_waited = true;
    }
}

Request* Engine::next_to_send(int64_t now) {
    if (!waiting_.empty()) {
        Request* request = waiting_.front();
        waiting_.pop_front();
        return request;
    }
    const bool makes_its_own = options_.mode == Mode::closed && now >= start_ns_ && now < measure_end_ns_;
    return makes_its_own ? &schedule(now_ns()) : nullptr;
}

void Engine::hand_over(Request& request, Connection& connection) {
    const bool is_first_time = request.sent_ns == 0;
    request.sent_ns = now_ns();
    request.connection = &connection;
    if (is_first_time && request.is_measured) {
        ++tally_.num_sent;
        if (!request.has_waited) tally_.schedule_lag.record(request.sent_ns - request.scheduled_ns);
    }
    mark_to_flush(connection);
    connection.submit(request);
}

void Engine::expire(int64_t now) {
    for (Request* oldest = outstanding_.oldest(); oldest != nullptr; oldest = outstanding_.oldest()) {
        if (oldest->scheduled_ns + timeout_ns_ > now) return;
        Connection* connection = oldest->connection;
        if (connection == nullptr) {
            waiting_.erase(std::find(waiting_.begin(), waiting_.end(), oldest));
        } else {
            connection->abandon(*oldest);
            mark_to_flush(*connection);
        }
        fail(*oldest, Failure::timeout);
        if (connection != nullptr) settle(*connection);
    }
}

void Engine::on_answer(Request& request, int status) {
    const int64_t now = now_ns();
    const bool is_ok = options_.protocol == Protocol::grpc ? status == 0 : status >= 200 && status < 300;
    if (is_ok && is_in_window(now)) ++tally_.num_ok_in_window;
    if (request.is_measured) {
        const int64_t latency_ns = now - request.scheduled_ns;
        TimelineStep& step = timeline_step(now);
        ++tally_.num_completed;
        ++tally_.num_by_status[status];
        ++(is_ok ? step.num_ok : step.num_refused);
        (is_ok ? tally_.ok_latency : tally_.refused_latency).record(latency_ns);
        if (is_ok) {
            ++tally_.num_ok;
            step.ok_latency.record(latency_ns);
            const double latency_ms = static_cast<double>(latency_ns) / kNsPerMs;
            if (options_.deadline_ms > 0 && latency_ms > options_.deadline_ms) ++tally_.num_late;
        }
    }
    finish(request, {request.scheduled_ns, request.sent_ns, now, "answered", status});
}

void Engine::on_unprocessed(Request& request) { send_again(request); }

void Engine::on_cut_off(Request& request, bool has_answer_bytes) {
    if (options_.retries_resets && !has_answer_bytes) return send_again(request);
    fail(request, Failure::reset);
}

void Engine::on_protocol_error(Request& request) { fail(request, Failure::protocol); }

void Engine::fail(Request& request, Failure failure) {
    static constexpr const char* kNames[kNumFailures] = {"connect", "reset", "timeout", "protocol"};
    const int64_t now = now_ns();
    const auto kind = static_cast<size_t>(failure);
    if (request.is_measured) {
        ++tally_.num_failed[kind];
        ++timeline_step(now).num_failed;
    }
    const int64_t sent_ns = request.sent_ns == 0 ? Sample::kNever : request.sent_ns;
    finish(request, {request.scheduled_ns, sent_ns, now, kNames[kind], 0});
}

void Engine::send_again(Request& request) {
    if (request.is_measured) ++tally_.num_resent;
    request.connection = nullptr;
    request.has_waited = true;
    waiting_.push_front(&request);
}

void Engine::finish(Request& request, const Sample& sample) {
    if (request.is_measured && !options_.csv_path.empty()) {
        Sample shifted = sample;
        shifted.scheduled_ns -= measure_start_ns_;
        shifted.finished_ns -= measure_start_ns_;
        if (sample.sent_ns != Sample::kNever) shifted.sent_ns -= measure_start_ns_;
        tally_.samples.push_back(shifted);
    }
    outstanding_.remove(request);
}

TimelineStep& Engine::timeline_step(int64_t finished_ns) {
    const auto step = static_cast<size_t>((finished_ns - measure_start_ns_) / (options_.timeline_ms * kNsPerMs));
    if (step >= tally_.timeline.size()) tally_.timeline.resize(step + 1);
    return tally_.timeline[step];
}

bool Engine::any_is(Connection::Phase phase) const {
    return std::any_of(connections_.begin(), connections_.end(),
                       [phase](const auto& c) { return c->phase() == phase; });
}

void Engine::open_connection() {
    Caller& caller = *this;
    std::unique_ptr<Connection> connection;
    if (options_.protocol == Protocol::grpc) {
        connection = std::make_unique<GrpcConnection>(options_, epoll_, caller, messages_, numbering_);
    } else {
        connection = std::make_unique<Http1Connection>(options_, epoll_, caller, messages_, numbering_);
    }
    ++tally_.num_connections_opened;
    connections_.push_back(std::move(connection));
    Connection& opened = *connections_.back();
    opened.connect();
    settle(opened);
}

void Engine::reopen_lost(int64_t now) {
    if (num_to_reopen_ == 0 || now < reopen_at_ns_) return;
    const size_t num_to_open = num_to_reopen_;
    num_to_reopen_ = 0;
    for (size_t i = 0; i < num_to_open; ++i) open_connection();
}

// Without any open connection a refused one is the verdict for every request that waits; with others open, they serve.
void Engine::note_refused_connect() {
    if (any_is(Connection::Phase::open) || start_ns_ == 0) return;
    const int64_t now = now_ns();
    if (options_.mode == Mode::closed && is_in_window(now)) return fail(schedule(now), Failure::connect);
    for (Request* request : std::exchange(waiting_, {})) fail(*request, Failure::connect);
}

// Brings the lists up to date with the phase of a connection; called after everything that may have changed it.
void Engine::settle(Connection& connection) {
    if (connection.num_free_streams() > 0) return list(connection);
    unlist(connection);
    const bool is_closed = connection.phase() == Connection::Phase::closed;
    const bool is_leaving = is_closed || connection.phase() == Connection::Phase::retiring;
    if (is_leaving && !connection.is_replaced) {
        connection.is_replaced = true;
        const bool was_of_use = connection.has_answered();
        // A server that lets nobody in is not asked again at once.
        if (num_to_reopen_++ == 0) reopen_at_ns_ = was_of_use ? 0 : now_ns() + kReopenAfterNs;
    }
    if (!is_closed) return;
    const auto found = std::find_if(connections_.begin(), connections_.end(),
                                    [&connection](const auto& owned) { return owned.get() == &connection; });
    if (found == connections_.end()) return;
    closed_.push_back(std::move(*found));
    connections_.erase(found);
    if (connection.connect_errno() == 0) return;
    last_connect_errno_ = connection.connect_errno();
    note_refused_connect();
}

void Engine::list(Connection& connection) {
    if (std::exchange(connection.is_listed, true)) return;
    free_.push_back(&connection);
}

void Engine::unlist(Connection& connection) {
    if (!std::exchange(connection.is_listed, false)) return;
    free_.erase(std::find(free_.begin(), free_.end(), &connection));
}

void Engine::mark_to_flush(Connection& connection) {
    if (std::exchange(connection.is_to_flush, true)) return;
    to_flush_.push_back(&connection);
}

void Engine::flush_marked() {
    for (Connection* connection : to_flush_) {
        connection->is_to_flush = false;
        connection->flush();
    }
    to_flush_.clear();
    closed_.clear();
}

}  // namespace load
