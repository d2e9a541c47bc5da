#pragma once
constexpr int kFromHeader = 800;
