// A first-in-first-out queue that costs nothing while it is empty: every stream has two, and most never use them.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace headroom {

template <typename T>
class Queue {
 public:
  bool empty() const { return at_ == items_.size(); }
  T& front() { return items_[at_]; }
  void push_back(T&& item) { items_.push_back(std::move(item)); }
  void pop_front() {
    items_[at_++] = T();
    if (empty()) clear();
    else if (at_ > kSlack && at_ * 2 > items_.size()) compact();
  }
  void clear() {
    items_.clear();
    at_ = 0;
  }

 private:
  static constexpr size_t kSlack = 32;

  void compact() {
    items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(at_));
    at_ = 0;
  }

  std::vector<T> items_;
  size_t at_ = 0;
};

}  // namespace headroom
