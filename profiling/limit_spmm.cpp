// The limit that spmm is measured against: what one writes by hand for float32 rows of a multiple of 16 columns.
// y[i] = row_scale[i] * sum_k col_scale[indices[k]] * x[indices[k]] over k in [indptr[i], indptr[i + 1]).
// Built by bench_ops.py only. Scales may be null; rows of x and y are contiguous and aligned to 64 bytes.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t kChunks = 256;  // of about equal work, handed to threads as they become free
constexpr int64_t kRowCost = 4;   // writing a row costs about as much as gathering this many

struct Matrix {
    int64_t rows;
    const int64_t* indptr;
    const int32_t* indices;
    const float* row_scale;
    const float* col_scale;

    int64_t work(int64_t row) const { return indptr[row] + kRowCost * row; }

    // The first row of a chunk.
    int64_t border(int64_t chunk) const {
        const int64_t target = work(rows) / kChunks * chunk + work(rows) % kChunks * chunk / kChunks;
        int64_t low = 0, high = rows;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (work(middle) < target) low = middle + 1;
            else high = middle;
        }
        return low;
    }
};

template <int kVectors>
void multiply(const Matrix& a, const float* x, float* y, int threads) {
    constexpr int kDim = 16 * kVectors;
    constexpr int64_t kAhead = std::clamp(8192 / (4 * kDim), 16, 64);  // rows between a prefetch and its use
    const int64_t last = a.indptr[a.rows] - 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
        const int64_t end = chunk + 1 == kChunks ? a.rows : a.border(chunk + 1);
        for (int64_t i = a.border(chunk); i < end; ++i) {
            __m512 sum[kVectors];
            for (int v = 0; v < kVectors; ++v) sum[v] = _mm512_setzero_ps();
            for (int64_t k = a.indptr[i]; k < a.indptr[i + 1]; ++k) {
                const float* ahead = x + kDim * static_cast<int64_t>(a.indices[std::min(k + kAhead, last)]);
                for (int v = 0; v < kVectors; ++v) _mm_prefetch(ahead + 16 * v, _MM_HINT_T0);
                const int64_t j = a.indices[k];
                const float* row = x + kDim * j;
                if (a.col_scale) {
                    const __m512 scale = _mm512_set1_ps(a.col_scale[j]);
                    for (int v = 0; v < kVectors; ++v)
                        sum[v] = _mm512_fmadd_ps(scale, _mm512_load_ps(row + 16 * v), sum[v]);
                } else {
                    for (int v = 0; v < kVectors; ++v) sum[v] = _mm512_add_ps(sum[v], _mm512_load_ps(row + 16 * v));
                }
            }
            const __m512 scale = _mm512_set1_ps(a.row_scale ? a.row_scale[i] : 1.0f);
            for (int v = 0; v < kVectors; ++v) _mm512_stream_ps(y + kDim * i + 16 * v, _mm512_mul_ps(scale, sum[v]));
        }
        _mm_sfence();
    }
}

}  // namespace

// dim is 16, 32, 64 or 128.
extern "C" void limit_spmm(int64_t rows, const int64_t* indptr, const int32_t* indices, const float* row_scale,
                           const float* col_scale, const float* x, float* y, int dim, int threads) {
    const Matrix a{rows, indptr, indices, row_scale, col_scale};
    switch (dim) {
        case 16: return multiply<1>(a, x, y, threads);
        case 32: return multiply<2>(a, x, y, threads);
        case 64: return multiply<4>(a, x, y, threads);
        case 128: return multiply<8>(a, x, y, threads);
    }
}
