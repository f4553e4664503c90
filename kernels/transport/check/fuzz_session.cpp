// libFuzzer target of the frame path: whatever a client may send, in whatever pieces, and Python's answers in between.
// The first byte of the input says how it is cut; 0xfe in a piece's first byte has the server answer, 0xff has time pass.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "session.hpp"

using namespace headroom;

namespace {

class FuzzHost final : public Host {
 public:
  int64_t now_ns() const override { return now; }
  TimingWheel& wheel() override { return timers; }
  const std::shared_ptr<Memory>& memory() override { return held; }
  uint64_t next_call_id() override { return ++id; }
  uint32_t index() const override { return 0; }
  bool open_call() override { return num_open++ < 64; }
  void close_call() override { num_open--; }
  void deliver(Event&& event) override { events.push_back(std::move(event)); }
  void ended(const CallPtr&, int) override {}
  void count(uint32_t, Unseen) override {}
  bool may_inflate() const override { return num_inflated < 1 << 16; }
  void inflated(size_t bytes) override { num_inflated += bytes; }

  int64_t now = 1'000'000'000;
  const Table& table() const override { return served; }

  TimingWheel timers{now};
  Table served;
  size_t num_inflated = 0;
  std::shared_ptr<Memory> held = std::make_shared<Memory>(1 << 20);
  uint64_t id = 0;
  int64_t num_open = 0;
  std::vector<Event> events;
};

Limits limits() {
  Limits made;
  made.max_message_bytes = 64 << 10;
  made.max_header_bytes = 4 << 10;
  made.max_streams = 32;
  return made;
}

Table table() {
  Table made;
  made.routes = {{60'000'000'000, {}}, {50'000'000, {}}, {50'000'000, {}}};
  made.methods["/a/U"] = {true, true, 1, 0};
  made.methods["/a/S"] = {false, false, 2, 2};
  made.models[model_key("m", "")] = 2;
  return made;
}

// What Python would do: answer requests, echo messages, end streams.
void answer(FuzzHost& host, Session& session) {
  std::vector<Event> events = std::move(host.events);
  host.events.clear();
  for (Event& event : events) {
    Command command;
    command.call = event.call;
    command.has_body = true;
    command.body = event.payload.bytes();
    command.status.trailers = {{"x", "y"}, {"z-bin", std::string("\0\xff", 2)}};
    const bool is_message = event.kind == Event::Kind::message;
    command.kind = is_message ? Command::Kind::message : Command::Kind::finish;
    if (event.kind == Event::Kind::opened || event.kind == Event::Kind::writable) continue;
    if (!is_message && !event.call->settle()) continue;
    session.apply(command);
    if (!is_message) continue;
    Command more;
    more.call = event.call;
    more.kind = Command::Kind::credit;
    more.value = 1;
    session.apply(more);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Limits kLimits = limits();
  static const Table kTable = table();
  if (size < 2) return 0;
  const size_t piece = data[0] + size_t{1};
  FuzzHost host;
  host.served = kTable;
  {
    Session session(host, kLimits, 7, std::make_shared<const std::string>("fuzz"));
    std::string out;
    for (size_t at = 1; at < size;) {
      if (data[at] == 0xfe) {
        answer(host, session);
        at++;
        continue;
      }
      if (data[at] == 0xff && at + 1 < size) {
        host.now += int64_t{data[at + 1]} * 1'000'000;
        host.timers.advance(host.now, [](void* owner) {
          auto& stream = *static_cast<Stream*>(owner);
          stream.session.expire(stream);
        });
        host.num_inflated = 0;
        session.resume_deferred();
        at += 2;
        continue;
      }
      const size_t n = std::min(piece, size - at);
      const bool is_alive = session.feed(data + at, n);
      at += n;
      out.clear();
      if (!session.pull(out, 1 << 16) || !is_alive) break;
    }
    answer(host, session);
    out.clear();
    session.pull(out, 1 << 16);
    session.reset_stalled(host.now + 1);
    session.announce_drain();
    session.finish_drain();
    session.pull(out, 1 << 20);
    host.events.clear();
  }
  if (host.num_open != 0 || host.held->held() != 0) __builtin_trap();  // a call or a message was lost
  return 0;
}
