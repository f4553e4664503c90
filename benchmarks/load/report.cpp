// Turns a Tally into JSON, CSV and a summary. Durations leave in microseconds.
#include "report.hpp"

#include <cstdio>
#include <numeric>
#include <string>

namespace load {

namespace {

constexpr double kNsPerUs = 1000.0;

std::string decimal(double number, int num_digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", num_digits, number);
    return text;
}

std::string us(double ns) { return decimal(ns / kNsPerUs, 1); }

std::string quoted(const std::string& text) {
    std::string quoted = "\"";
    for (const char c : text) {
        char escape[8];
        std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned char>(c));
        if (static_cast<unsigned char>(c) < 0x20) quoted += escape;
        else if (c == '"' || c == '\\') quoted += std::string("\\") + c;
        else quoted += c;
    }
    return quoted + "\"";
}

std::string quantile_us(const Histogram& histogram, double quantile) {
    return histogram.count() == 0 ? "null" : us(static_cast<double>(histogram.quantile_ns(quantile)));
}

std::string latency_json(const Histogram& h) {
    if (h.count() == 0) return "null";
    return "{\"count\": " + std::to_string(h.count()) + ", \"min\": " + us(static_cast<double>(h.min_ns())) +
           ", \"mean\": " + us(h.mean_ns()) + ", \"p50\": " + quantile_us(h, 0.5) +
           ", \"p90\": " + quantile_us(h, 0.9) + ", \"p95\": " + quantile_us(h, 0.95) +
           ", \"p99\": " + quantile_us(h, 0.99) + ", \"p99_9\": " + quantile_us(h, 0.999) +
           ", \"max\": " + us(static_cast<double>(h.max_ns())) + "}";
}

std::string or_null(bool is_given, const std::string& value) { return is_given ? value : "null"; }

void write_config(std::ostream& out, const Options& o, size_t num_bodies) {
    const bool is_open = o.mode == Mode::open;
    out << "  \"config\": {\"url\": " << quoted(o.target.url)
        << ", \"protocol\": " << (o.protocol == Protocol::grpc ? "\"grpc\"" : "\"http1\"")
        << ", \"mode\": " << (is_open ? "\"open\"" : "\"closed\"")
        << ", \"rate\": " << or_null(is_open, decimal(o.rate, 3))
        << ", \"arrivals\": " << (o.arrivals == ArrivalLaw::poisson ? "\"poisson\"" : "\"uniform\"")
        << ", \"arrivals_burst\": " << o.arrivals_burst << ", \"seed\": " << o.seed
        << ", \"duration_s\": " << decimal(o.duration_s, 3) << ", \"warmup_s\": " << decimal(o.warmup_s, 3)
        << ", \"connections\": " << o.num_connections
        << ", \"streams\": " << or_null(o.protocol == Protocol::grpc, std::to_string(o.num_streams))
        << ", \"in_flight\": " << or_null(o.max_outstanding > 0, std::to_string(o.max_outstanding))
        << ", \"threads\": " << o.num_threads << ", \"method\": " << quoted(o.method)
        << ", \"bodies\": " << quoted(o.bodies_path) << ", \"num_bodies\": " << num_bodies
        << ", \"items\": " << o.items_per_request << ", \"timeout_ms\": " << o.timeout_ms
        << ", \"deadline_ms\": " << or_null(o.deadline_ms > 0, decimal(o.deadline_ms, 3))
        << ", \"timeline_ms\": " << o.timeline_ms << ", \"retry_reset\": " << (o.retries_resets ? "true" : "false")
        << ", \"timer_slack_us\": " << o.timer_slack_us << ", \"spin\": " << (o.spins ? "true" : "false") << "},\n";
}

void write_counts(std::ostream& out, const Options& o, const Tally& t) {
    const auto& [connect, reset, timeout, protocol] = t.num_failed;
    const bool has_deadline = o.deadline_ms > 0;
    const uint64_t goodput = t.num_ok - t.num_late;
    out << "  \"offered\": " << t.num_offered << ",\n  \"sent\": " << t.num_sent
        << ",\n  \"completed\": " << t.num_completed << ",\n  \"ok\": " << t.num_ok << ",\n  \"by_status\": {";
    const char* separator = "";
    for (const auto& [status, count] : t.num_by_status) {
        out << separator << "\"" << status << "\": " << count;
        separator = ", ";
    }
    out << "},\n  \"failed\": {\"connect\": " << connect << ", \"reset\": " << reset << ", \"timeout\": " << timeout
        << ", \"protocol\": " << protocol << "},\n  \"not_sent\": " << t.num_not_sent
        << ",\n  \"resent\": " << t.num_resent << ",\n  \"late\": " << or_null(has_deadline, std::to_string(t.num_late))
        << ",\n  \"goodput\": " << or_null(has_deadline, std::to_string(goodput))
        << ",\n  \"goodput_per_s\": " << or_null(has_deadline, decimal(static_cast<double>(goodput) / o.duration_s, 1))
        << ",\n";
}

double rate_achieved(const Options& o, const Tally& t) {
    return static_cast<double>(t.num_ok_in_window) / o.duration_s;
}

double cpu_cores(const Options& o, const Tally& t) { return (t.user_s + t.system_s) / o.duration_s; }

void write_timeline(std::ostream& out, const Options& o, const Tally& t) {
    out << "  \"timeline\": [";
    for (size_t i = 0; i < t.timeline.size(); ++i) {
        const TimelineStep& step = t.timeline[i];
        out << (i == 0 ? "\n" : ",\n")
            << "    {\"t_s\": " << decimal(static_cast<double>(i) * static_cast<double>(o.timeline_ms) / 1000.0, 3)
            << ", \"ok\": " << step.num_ok << ", \"refused\": " << step.num_refused
            << ", \"failed\": " << step.num_failed << ", \"p50_us\": " << quantile_us(step.ok_latency, 0.5)
            << ", \"p99_us\": " << quantile_us(step.ok_latency, 0.99) << "}";
    }
    out << "\n  ],\n";
}

}  // namespace

void write_json(std::ostream& out, const Options& o, const Tally& t, size_t num_bodies) {
    const double achieved = rate_achieved(o, t);
    out << "{\n";
    write_config(out, o, num_bodies);
    write_counts(out, o, t);
    out << "  \"rate_offered\": " << decimal(static_cast<double>(t.num_offered) / o.duration_s, 1)
        << ",\n  \"rate_achieved\": " << decimal(achieved, 1)
        << ",\n  \"rows_per_s\": " << decimal(achieved * static_cast<double>(o.items_per_request), 1)
        << ",\n  \"latency_us\": " << latency_json(t.ok_latency)
        << ",\n  \"latency_refused_us\": " << latency_json(t.refused_latency) << ",\n";
    write_timeline(out, o, t);
    out << "  \"connections_opened\": " << t.num_connections_opened
        << ",\n  \"generator\": {\"user_s\": " << decimal(t.user_s, 3) << ", \"sys_s\": " << decimal(t.system_s, 3)
        << ", \"cpu_cores\": " << decimal(cpu_cores(o, t), 3)
        << ", \"schedule_lag_us\": " << latency_json(t.schedule_lag) << "}\n}\n";
}

void write_csv(std::ostream& out, const Tally& t) {
    const auto time_us = [](int64_t ns) { return ns == Sample::kNever ? "" : us(static_cast<double>(ns)); };
    out << "scheduled_us,sent_us,finished_us,outcome,status\n";
    for (const Sample& sample : t.samples) {
        out << time_us(sample.scheduled_ns) << "," << time_us(sample.sent_ns) << "," << time_us(sample.finished_ns)
            << "," << sample.outcome << "," << sample.status << "\n";
    }
}

void write_summary(std::ostream& out, const Options& o, const Tally& t) {
    const auto ms = [&t](double q) { return decimal(static_cast<double>(t.ok_latency.quantile_ns(q)) / 1e6, 2); };
    const auto& [connect, reset, timeout, protocol] = t.num_failed;
    const uint64_t lag_p99_us = t.schedule_lag.quantile_ns(0.99) / 1000;
    out << "offered " << t.num_offered << ", ok " << t.num_ok << ", refused " << t.num_completed - t.num_ok
        << ", failed " << connect + reset + timeout + protocol << " (connect " << connect << ", reset " << reset
        << ", timeout " << timeout << ", protocol " << protocol << "), not sent " << t.num_not_sent << ", resent "
        << t.num_resent << "\n"
        << "rate " << decimal(rate_achieved(o, t), 1) << " ok/s; latency ms p50 " << ms(0.5) << ", p90 " << ms(0.9)
        << ", p99 " << ms(0.99) << ", p99.9 " << ms(0.999) << ", max " << ms(1.0) << "\n"
        << "generator: " << decimal(cpu_cores(o, t), 2) << " cores, requests issued late by p99 " << lag_p99_us
        << " us\n";
    if (cpu_cores(o, t) > 0.9 * static_cast<double>(o.num_threads) || lag_p99_us > 1000) {
        out << "the generator itself was short of CPU: read these figures as a lower bound of the server's\n";
    }
}

}  // namespace load
