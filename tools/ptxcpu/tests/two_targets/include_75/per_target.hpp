#pragma once
constexpr int kFromHeader = 750;
