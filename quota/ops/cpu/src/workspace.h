// Memory that a thread keeps, and that only ever grows.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

class Workspace {
public:
    // So many bytes in all that follows, with a line for each of up to LINES pieces; false without memory.
    bool reserve(int64_t size) {
        used_ = 0;
        size = (size + LINES * LINE) / LINE * LINE;
        if (size <= size_) return true;
        memory_.reset(static_cast<char*>(std::aligned_alloc(LINE, size)));
        size_ = memory_ ? size : 0;
        return memory_ != nullptr;
    }
    // The next `count` elements of what was reserved, on a line of their own.
    template <class T>
    T* take(int64_t count) {
        used_ = (used_ + LINE - 1) / LINE * LINE;
        T* piece = reinterpret_cast<T*>(memory_.get() + used_);
        used_ += count * int64_t(sizeof(T));
        return piece;
    }

private:
    static constexpr int64_t LINE = 64, LINES = 8;
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<char, Free> memory_;
    int64_t size_ = 0, used_ = 0;
};
