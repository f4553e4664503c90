// The transport as a Python module. What is called per batch is written against CPython's own interface.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unordered_map.h>
#include <nanobind/stl/vector.h>

#include <malloc.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "server.hpp"
#include "wire.hpp"

namespace nb = nanobind;
using namespace headroom;

namespace {

constexpr int64_t kNsPerS = 1'000'000'000;
// After taking more than this, the next will come by the batch as well.
constexpr size_t kFewRequests = 2;

// A call, as Python holds it.
struct Handle {
  CallPtr call;
};

std::string_view text_of(PyObject* object, const char* what) {
  Py_ssize_t size = 0;
  if (PyUnicode_Check(object)) {
    const char* text = PyUnicode_AsUTF8AndSize(object, &size);
    if (text == nullptr) throw nb::python_error();
    return {text, static_cast<size_t>(size)};
  }
  if (PyBytes_Check(object)) return {PyBytes_AS_STRING(object), static_cast<size_t>(PyBytes_GET_SIZE(object))};
  throw nb::type_error((std::string(what) + " is neither str nor bytes").c_str());
}

// From pairs of names and values: str, or bytes for names that end in -bin.
Metadata metadata_of(PyObject* pairs) {
  Metadata metadata;
  if (pairs == Py_None) return metadata;
  nb::object fast = nb::steal(PySequence_Fast(pairs, "metadata is not a sequence"));
  if (!fast.is_valid()) throw nb::python_error();
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(fast.ptr());
  metadata.reserve(static_cast<size_t>(n));
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject* pair = PySequence_Fast_GET_ITEM(fast.ptr(), i);
    if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) throw nb::type_error("metadata is not made of pairs");
    const std::string_view name = text_of(PyTuple_GET_ITEM(pair, 0), "a metadata name");
    const std::string_view value = text_of(PyTuple_GET_ITEM(pair, 1), "a metadata value");
    if (!is_metadata_name(name)) throw nb::value_error(("metadata name '" + std::string(name) + "' is not allowed").c_str());
    if (!is_binary_name(name) && !is_metadata_value(value)) {
      throw nb::value_error(("metadata '" + std::string(name) + "' has a value that is not visible ASCII").c_str());
    }
    metadata.push_back({std::string(name), std::string(value)});
  }
  return metadata;
}

nb::object python_of(const Metadata& metadata) {
  nb::list pairs;
  for (const Header& header : metadata) {
    nb::object value = is_binary_name(header.name)
                           ? nb::object(nb::bytes(header.value.data(), header.value.size()))
                           : nb::steal(PyUnicode_DecodeLatin1(header.value.data(), static_cast<Py_ssize_t>(header.value.size()), nullptr));
    pairs.append(nb::make_tuple(nb::str(header.name.c_str(), header.name.size()), value));
  }
  return nb::tuple(pairs);
}

PyObject* new_bytes(const std::string& bytes) {
  PyObject* object = PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size()));
  if (object == nullptr) throw nb::python_error();
  return object;
}

PyObject* new_handle(CallPtr call) { return nb::cast(Handle{std::move(call)}, nb::rv_policy::move).release().ptr(); }

PyObject* checked(PyObject* object) {
  if (object == nullptr) throw nb::python_error();
  return object;
}

// (call, payload, route, arrived_ns, deadline_ns, has_metadata)
nb::object request_of(Event& event) {
  const Call& call = *event.call;
  nb::object owner = nb::steal(checked(PyTuple_New(6)));
  PyObject* tuple = owner.ptr();
  PyTuple_SET_ITEM(tuple, 1, new_bytes(event.payload.bytes()));
  PyTuple_SET_ITEM(tuple, 2, checked(PyLong_FromUnsignedLong(call.route)));
  PyTuple_SET_ITEM(tuple, 3, checked(PyLong_FromLongLong(call.arrived_ns)));
  PyTuple_SET_ITEM(tuple, 4, checked(PyLong_FromLongLong(call.deadline_ns)));
  PyTuple_SET_ITEM(tuple, 5, PyBool_FromLong(call.has_metadata));
  PyTuple_SET_ITEM(tuple, 0, new_handle(std::move(event.call)));
  return owner;
}

// (call, kind, payload, code)
nb::object event_of(Event& event) {
  nb::object owner = nb::steal(checked(PyTuple_New(4)));
  PyObject* tuple = owner.ptr();
  PyTuple_SET_ITEM(tuple, 1, checked(PyLong_FromLong(static_cast<int>(event.kind))));
  PyTuple_SET_ITEM(tuple, 2, new_bytes(event.payload.bytes()));
  PyTuple_SET_ITEM(tuple, 3, checked(PyLong_FromLong(event.code)));
  PyTuple_SET_ITEM(tuple, 0, new_handle(std::move(event.call)));
  return owner;
}

using TlsPaths = std::tuple<std::string, std::string, std::string>;
using RouteTuple = std::tuple<size_t, int64_t, std::string, nb::object>;
using MethodTuple = std::tuple<bool, bool, uint32_t, int64_t>;

TlsFiles files_of(const TlsPaths& paths) { return {std::get<0>(paths), std::get<1>(paths), std::get<2>(paths)}; }

class Transport {
 public:
  Transport(int listener, uint32_t num_threads, const nb::dict& limits, const std::optional<TlsPaths>& tls) {
    if (num_threads < 1) throw nb::value_error("num_threads is 0; allowed: at least 1");
    const std::optional<TlsFiles> files = tls ? std::optional(files_of(*tls)) : std::nullopt;
    server_ = std::make_unique<Server>(limits_of(limits), listener, num_threads, files ? &*files : nullptr);
  }

  void serve(const std::vector<RouteTuple>& routes, const std::unordered_map<std::string, MethodTuple>& methods,
             const std::vector<std::tuple<std::string, std::string, uint32_t>>& models) {
    if (routes.empty()) throw nb::value_error("there is no route for unknown paths");
    if (routes.size() < num_routes_) throw nb::value_error("there are fewer routes than before");
    Table table;
    std::vector<size_t> groups;
    for (const auto& [group, budget_ns, message, trailers] : routes) {
      if (group > routes.size()) throw nb::value_error("a route's group does not exist");
      table.routes.push_back({budget_ns, {kResourceExhausted, message, metadata_of(trailers.ptr())}});
      groups.push_back(group);
    }
    for (const auto& [path, method] : methods) {
      const auto& [is_unary, names_model, route, credit] = method;
      if (route >= routes.size()) throw nb::value_error("a method's route does not exist");
      table.methods[path] = {is_unary, names_model, route, credit};
    }
    for (const auto& [name, version, route] : models) {
      if (route >= routes.size()) throw nb::value_error("a model's route does not exist");
      table.models[model_key(name, version)] = route;
    }
    num_routes_ = routes.size();
    server_->serve(std::move(table), groups);
  }

  void start() { server_->start(); }

  nb::object take(double timeout_s) {
    taken_.clear();
    const auto timeout_ns = static_cast<int64_t>(timeout_s * kNsPerS);
    if (timeout_ns > 0 && !server_->inbox().has_any()) {
      nb::gil_scoped_release release;
      server_->wait(timeout_ns, was_batch_);
    }
    server_->inbox().take(taken_);
    was_batch_ = taken_.size() > kFewRequests;
    nb::list requests, events;
    for (Event& event : taken_) {
      const bool is_request = event.kind == Event::Kind::request;
      if (is_request) requests.append(request_of(event));
      else events.append(event_of(event));
    }
    taken_.clear();
    return nb::make_tuple(requests, events);
  }

  // Answers: (call, code, body or None, message, trailers or None). Gives the indexes of calls that had ended before, or None.
  nb::object reply(nb::list answers) {
    const size_t n = answers.size();
    std::vector<Command> commands;
    commands.reserve(n);
    for (size_t i = 0; i < n; i++) {
      PyObject* answer = PyList_GET_ITEM(answers.ptr(), static_cast<Py_ssize_t>(i));
      if (!PyTuple_Check(answer) || PyTuple_GET_SIZE(answer) != 5) throw nb::type_error("an answer is not a tuple of five");
      Command& command = commands.emplace_back();
      command.call = handle_of(PyTuple_GET_ITEM(answer, 0)).call;
      command.status.code = static_cast<int>(PyLong_AsLong(PyTuple_GET_ITEM(answer, 1)));
      if (PyErr_Occurred() != nullptr) throw nb::python_error();
      PyObject* body = PyTuple_GET_ITEM(answer, 2);
      command.has_body = body != Py_None;
      if (command.has_body) command.body = text_of(body, "a body");
      command.status.message = text_of(PyTuple_GET_ITEM(answer, 3), "a message");
      command.status.trailers = metadata_of(PyTuple_GET_ITEM(answer, 4));
    }
    return settle_and_post(commands);
  }

  // One batch's answers, all of them good: (call, body, request id, ns in the queue). Gives what `reply` does.
  nb::object reply_ok(nb::list answers, std::string stages) {
    const size_t n = answers.size();
    const auto shared_stages = std::make_shared<const std::string>(std::move(stages));
    if (!is_metadata_value(*shared_stages)) throw nb::value_error("stages are not visible ASCII");
    std::vector<Command> commands;
    commands.reserve(n);
    for (size_t i = 0; i < n; i++) {
      PyObject* answer = PyList_GET_ITEM(answers.ptr(), static_cast<Py_ssize_t>(i));
      if (!PyTuple_Check(answer) || PyTuple_GET_SIZE(answer) != 4) throw nb::type_error("an answer is not a tuple of four");
      Command& command = commands.emplace_back();
      command.call = handle_of(PyTuple_GET_ITEM(answer, 0)).call;
      command.has_body = true;
      command.body = text_of(PyTuple_GET_ITEM(answer, 1), "a body");
      command.status.request_id = text_of(PyTuple_GET_ITEM(answer, 2), "a request id");
      command.status.queue_ns = PyLong_AsLongLong(PyTuple_GET_ITEM(answer, 3));
      if (PyErr_Occurred() != nullptr) throw nb::python_error();
      if (!is_metadata_value(command.status.request_id)) throw nb::value_error("a request id is not visible ASCII");
      command.status.stages = shared_stages;
    }
    return settle_and_post(commands);
  }

  // A message of a stream, or its first metadata alone. Whether so much waits for the client that nothing more should be
  // sent before the event `writable`.
  bool send(const Handle& handle, nb::object body, nb::object initial_metadata) {
    Command command;
    command.kind = Command::Kind::message;
    command.call = handle.call;
    command.has_body = !body.is_none();
    if (command.has_body) command.body = text_of(body.ptr(), "a body");
    command.initial_metadata = metadata_of(initial_metadata.ptr());
    const auto size = static_cast<int64_t>(command.body.size());
    const int64_t unsent = handle.call->unsent_bytes.fetch_add(size) + size;
    std::vector<Command> commands;
    commands.push_back(std::move(command));
    server_->post(std::move(commands));
    return unsent > kUnsentHigh;
  }

  void grant(const Handle& handle, int64_t messages) { post(handle, Command::Kind::credit, messages); }
  void limit(const Handle& handle, int64_t deadline_ns) { post(handle, Command::Kind::limit, deadline_ns); }

  void set_bound(size_t group, size_t bound) { server_->inbox().set_bound(group, bound); }
  void set_room(size_t group, size_t room) { server_->inbox().set_room(group, room); }
  size_t waiting(size_t group) { return server_->inbox().waiting(group); }
  void wake() { server_->wake(); }

  // (route, (queue_full, memory, concurrency, expired, cancelled, invalid)) of calls Python has never seen, since the last time.
  std::vector<std::pair<size_t, std::vector<uint64_t>>> tallies() {
    std::vector<std::pair<size_t, std::vector<uint64_t>>> found;
    const std::vector<Tally> all = server_->inbox().tallies();
    for (size_t route = 0; route < all.size(); route++) {
      const Tally& tally = all[route];
      if (tally != Tally{}) found.emplace_back(route, std::vector<uint64_t>(tally.begin(), tally.end()));
    }
    return found;
  }

  void load_tls(const TlsPaths& paths) { server_->load_tls(files_of(paths)); }

  bool drain(int64_t deadline_ns) {
    nb::gil_scoped_release release;
    return server_->drain(deadline_ns);
  }

  void stop() {
    nb::gil_scoped_release release;
    server_->stop();
  }

  nb::dict statistics() {
    const Statistics now = server_->statistics();
    nb::dict found;
    found["connections"] = now.connections;
    found["calls"] = now.calls;
    found["buffered_bytes"] = now.buffered_bytes;
    found["accepted"] = now.accepted;
    found["refused_connections"] = now.refused_connections;
    return found;
  }

 private:
  nb::object settle_and_post(std::vector<Command>& commands) {
    std::vector<size_t> lost;
    std::vector<Command> posted;
    posted.reserve(commands.size());
    lost.reserve(commands.size());
    for (size_t i = 0; i < commands.size(); i++) {
      if (commands[i].call->settle()) posted.push_back(std::move(commands[i]));
      else lost.push_back(i);
    }
    server_->post(std::move(posted));  // before anything can fail: who has settled a call must answer it
    return lost.empty() ? nb::none() : nb::cast(lost);
  }

  static const Handle& handle_of(PyObject* object) {
    if (!nb::isinstance<Handle>(object)) throw nb::type_error("not a Call");
    return *nb::inst_ptr<Handle>(object);
  }

  void post(const Handle& handle, Command::Kind kind, int64_t value) {
    Command command;
    command.kind = kind;
    command.call = handle.call;
    command.value = value;
    std::vector<Command> commands;
    commands.push_back(std::move(command));
    server_->post(std::move(commands));
  }

  static Limits limits_of(const nb::dict& given) {
    Limits limits;
    for (auto [key, value] : given) {
      const auto name = nb::cast<std::string>(key);
      const auto number = nb::cast<int64_t>(value);
      if (name == "max_message_bytes") limits.max_message_bytes = static_cast<size_t>(number);
      else if (name == "max_header_bytes") limits.max_header_bytes = static_cast<size_t>(number);
      else if (name == "max_buffered_bytes") limits.max_buffered_bytes = static_cast<size_t>(number);
      else if (name == "max_streams") limits.max_streams = static_cast<uint32_t>(number);
      else if (name == "max_connections") limits.max_connections = static_cast<size_t>(number);
      else if (name == "max_calls") limits.max_calls = static_cast<size_t>(number);
      else if (name == "handshake_timeout_ns") limits.handshake_timeout_ns = number;
      else if (name == "write_timeout_ns") limits.write_timeout_ns = number;
      else if (name == "keepalive_ns") limits.keepalive_ns = number;
      else if (name == "keepalive_timeout_ns") limits.keepalive_timeout_ns = number;
      else if (name == "max_age_ns") limits.max_age_ns = number;
      else if (name == "age_grace_ns") limits.age_grace_ns = number;
      else throw nb::value_error(("no limit is named " + name).c_str());
    }
    return limits;
  }

  std::unique_ptr<Server> server_;
  std::vector<Event> taken_;
  bool was_batch_ = false;
  size_t num_routes_ = 0;
};

}  // namespace

NB_MODULE(_transport, module) {
  nb::dict kinds;
  kinds["opened"] = static_cast<int>(Event::Kind::opened);
  kinds["message"] = static_cast<int>(Event::Kind::message);
  kinds["half_closed"] = static_cast<int>(Event::Kind::half_closed);
  kinds["ended"] = static_cast<int>(Event::Kind::ended);
  kinds["writable"] = static_cast<int>(Event::Kind::writable);
  module.attr("EVENT_KINDS") = kinds;
  // A megabyte that is given back to the system is a megabyte of page faults when the next message comes.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  nb::class_<Handle>(module, "Call")
      .def_prop_ro("id", [](const Handle& h) { return h.call->id; })
      .def_prop_ro("route", [](const Handle& h) { return h.call->route; })
      .def_prop_ro("arrived_ns", [](const Handle& h) { return h.call->arrived_ns; })
      .def_prop_ro("deadline_ns", [](const Handle& h) { return h.call->deadline_ns; })
      .def_prop_ro("has_metadata", [](const Handle& h) { return h.call->has_metadata; })
      .def_prop_ro("metadata", [](const Handle& h) { return python_of(h.call->metadata); })
      .def_prop_ro("peer", [](const Handle& h) { return *h.call->peer; });
  nb::class_<Transport>(module, "Transport")
      .def(nb::init<int, uint32_t, const nb::dict&, const std::optional<TlsPaths>&>(), nb::kw_only(), nb::arg("listener"),
           nb::arg("num_threads"), nb::arg("limits"), nb::arg("tls").none())
      .def("serve", &Transport::serve, nb::arg("routes"), nb::arg("methods"), nb::arg("models"))
      .def("start", &Transport::start)
      .def("take", &Transport::take, nb::arg("timeout_s"))
      .def("reply", &Transport::reply, nb::arg("answers"))
      .def("reply_ok", &Transport::reply_ok, nb::arg("answers"), nb::arg("stages"))
      .def("send", &Transport::send, nb::arg("call"), nb::arg("body").none(), nb::arg("initial_metadata").none() = nb::none())
      .def("grant", &Transport::grant, nb::arg("call"), nb::arg("messages"))
      .def("limit", &Transport::limit, nb::arg("call"), nb::arg("deadline_ns"))
      .def("set_bound", &Transport::set_bound, nb::arg("group"), nb::arg("bound"))
      .def("set_room", &Transport::set_room, nb::arg("group"), nb::arg("room"))
      .def("waiting", &Transport::waiting, nb::arg("group"))
      .def("wake", &Transport::wake)
      .def("tallies", &Transport::tallies)
      .def("load_tls", &Transport::load_tls, nb::arg("files"))
      .def("drain", &Transport::drain, nb::arg("deadline_ns"))
      .def("stop", &Transport::stop)
      .def("statistics", &Transport::statistics);
}
