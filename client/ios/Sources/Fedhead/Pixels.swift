import CoreGraphics
import Foundation

/// An upright image in the form that the model needs: alpha laid on white, the shorter side scaled to
/// size (bilinear, antialiased), the middle of the longer side kept, RGB in three planes.
public func pixels(of image: CGImage, size: Int) throws -> [UInt8] {
  let (width, height) = (image.width, image.height)
  var raw = [UInt8](repeating: 255, count: 4 * width * height)
  let drawn = raw.withUnsafeMutableBytes { buffer -> Bool in
    guard let context = CGContext(
      data: buffer.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
      space: CGColorSpace(name: CGColorSpace.sRGB)!, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
    else { return false }
    let all = CGRect(x: 0, y: 0, width: width, height: height)
    context.setFillColor(CGColor(red: 1, green: 1, blue: 1, alpha: 1))
    context.fill(all)
    context.draw(image, in: all)
    return true
  }
  guard drawn else { throw WireError(description: "an image cannot be drawn") }
  let side = min(width, height)
  let columns = windows(length: width, start: Double(width - side) / 2, side: side, size: size)
  let rows = windows(length: height, start: Double(height - side) / 2, side: side, size: size)
  var result: [UInt8] = []
  for plane in 0..<3 {
    var narrow = [UInt8](repeating: 0, count: size * height)
    for y in 0..<height { for x in 0..<size { narrow[y * size + x] = columns[x].mix { raw[4 * (y * width + $0) + plane] } } }
    for y in 0..<size { for x in 0..<size { result.append(rows[y].mix { narrow[$0 * size + x] }) } }
  }
  return result
}

/// The old pixels that make one new pixel: the first of them, and the weight of each.
struct Window {
  let first: Int
  let weights: [Double]

  func mix(_ value: (Int) -> UInt8) -> UInt8 {
    var sum = 0.0
    for k in weights.indices { sum += weights[k] * Double(value(first + k)) }
    return UInt8(max(0, min(255, sum.rounded())))
  }
}

/// Triangles two new pixels wide, or two old pixels wide if the image is enlarged.
func windows(length: Int, start: Double, side: Int, size: Int) -> [Window] {
  (0..<size).map { i in
    let step = Double(side) / Double(size)
    let reach = max(step, 1)
    let center = start + (Double(i) + 0.5) * step
    let first = max(Int(center - reach + 0.5), 0)
    let end = min(Int(center + reach + 0.5), length)
    let raw = (first..<end).map { max(0, 1 - abs(Double($0) + 0.5 - center) / reach) }
    let sum = raw.reduce(0, +)
    return Window(first: first, weights: raw.map { $0 / sum })
  }
}

/// Height and width of a square image in three planes; 0 if the bytes are none.
func side(of pixels: [UInt8]) -> Int {
  let side = Int((Double(pixels.count) / 3).squareRoot().rounded())
  return 3 * side * side == pixels.count ? side : 0
}

/// A square image in three planes, scaled to another size (bilinear, antialiased).
func scaled(_ pixels: [UInt8], to size: Int) -> [UInt8] {
  let old = side(of: pixels)
  guard old != size else { return pixels }
  let parts = windows(length: old, start: 0, side: old, size: size)
  var result: [UInt8] = []
  for plane in 0..<3 {
    let first = plane * old * old
    var narrow = [UInt8](repeating: 0, count: old * size)
    for y in 0..<old { for x in 0..<size { narrow[y * size + x] = parts[x].mix { pixels[first + y * old + $0] } } }
    for y in 0..<size { for x in 0..<size { result.append(parts[y].mix { narrow[$0 * size + x] }) } }
  }
  return result
}
